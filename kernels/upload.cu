// `upload`: a call's words, where they are too many for its parameters, into the caller's workspace.
//
// They travel as parameters of this kernel, as many launches as it takes, and not as a copy from the host: the
// driver takes parameters over when it is called, so the host's memory is free at once, nothing is pinned or
// waited for, and a captured graph has the words inside it.

#define ELEMENT F32
#include <rows.cuh>

struct alignas(16) Upload {
    u64 to;
    u32 count;
    u32 unused;
    u32 words[LARGE - 4];
};

KERNEL(upload, Upload, part) {
    const u32 index = block_x() * thread_count() + thread_index();
    if (index < part.count) {
        store_word(part.to + 4 * static_cast<u64>(index), part.words[index]);
    }
}
