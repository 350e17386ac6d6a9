//! How near the CPU kernels come to memory.
use pie_rope::__arch::{Kernels, Pairing, Turn, Walk};
use pie_rope::ElementType;
use std::arch::x86_64::*;
use std::time::Instant;

unsafe extern "C" {
    fn madvise(addr: *mut u8, len: usize, advice: i32) -> i32;
    fn sched_setaffinity(pid: i32, size: usize, mask: *const u64) -> i32;
}

#[derive(Clone, Copy)]
struct Buffer {
    at: *mut u8,
    len: usize,
}
unsafe impl Sync for Buffer {}
unsafe impl Send for Buffer {}

fn buffer(len: usize, huge: bool) -> Buffer {
    let layout = std::alloc::Layout::from_size_align(len, 2 << 20).unwrap();
    let at = unsafe { std::alloc::alloc(layout) };
    unsafe { madvise(at, len, if huge { 14 } else { 15 }) };
    Buffer { at, len }
}

#[target_feature(enable = "avx512f")]
unsafe fn sweep<const AHEAD: usize>(at: *mut u8, len: usize) {
    unsafe {
        let k = _mm512_set1_epi32(0x00010001);
        let mut i = 0;
        while i < len {
            let p = at.add(i);
            if AHEAD > 0 {
                for j in 0..4 {
                    _mm_prefetch::<_MM_HINT_T0>(p.wrapping_add(AHEAD + 64 * j) as *const i8);
                }
            }
            for j in 0..4 {
                let q = p.add(64 * j).cast();
                _mm512_storeu_si512(q, _mm512_xor_si512(_mm512_loadu_si512(q.cast()), k));
            }
            i += 256;
        }
    }
}

fn fill(b: &Buffer, e: ElementType) {
    let mut s = 0x1234_5678_9abc_def1_u64;
    for i in 0..b.len / 4 {
        s ^= s << 13;
        s ^= s >> 7;
        s ^= s << 17;
        let bits: u32 = match e {
            ElementType::F32 => 0x3f80_0000 | (s as u32 & 0x807f_ffff),
            ElementType::F16 => 0x3c00_3c00 | (s as u32 & 0x83ff_83ff),
            ElementType::BF16 => 0x3f80_3f80 | (s as u32 & 0x807f_807f),
        };
        unsafe { b.at.cast::<u32>().add(i).write(bits) };
    }
}

fn threads(n: usize, len: usize, f: impl Fn(usize, usize) + Sync) -> f64 {
    let barrier = std::sync::Barrier::new(n);
    let part = len / n;
    std::thread::scope(|s| {
        let hs: Vec<_> = (0..n)
            .map(|t| {
                let (f, barrier) = (&f, &barrier);
                s.spawn(move || {
                    unsafe { sched_setaffinity(0, 8, &(1u64 << t)) };
                    barrier.wait();
                    let start = Instant::now();
                    f(t * part, part);
                    (start, Instant::now())
                })
            })
            .collect();
        let r: Vec<_> = hs.into_iter().map(|h| h.join().unwrap()).collect();
        (r.iter().map(|x| x.1).max().unwrap() - r.iter().map(|x| x.0).min().unwrap()).as_secs_f64()
    })
}
fn median(v: &mut [f64]) -> f64 {
    v.sort_by(f64::total_cmp);
    v[v.len() / 2]
}

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let arg = |k: &str, d: &str| {
        args.iter()
            .find_map(|a| a.strip_prefix(&format!("{k}=")))
            .unwrap_or(d)
            .to_string()
    };
    let list = |k: &str, d: &str| {
        arg(k, d)
            .split(',')
            .map(|v| v.parse::<usize>().unwrap())
            .collect::<Vec<_>>()
    };
    let mb: usize = arg("mb", "256").parse().unwrap();
    let rounds: usize = arg("rounds", "7").parse().unwrap();
    let huge = arg("pages", "huge") == "huge";
    let path = arg("path", "");
    let l1 = args.iter().any(|a| a == "l1");
    let gap: usize = arg("gap", "0").parse().unwrap();
    let (ths, dims, types) = (
        list("threads", "1,2"),
        list("dims", "64,80,96,128,256"),
        arg("types", "f32,f16,bf16"),
    );
    let kernels = Kernels::available()
        .find(|k| k.name.starts_with(&path))
        .unwrap();
    println!("{} mb={mb} huge={huge}", kernels.name);
    let len = if l1 {
        15360
    } else {
        (mb << 20) / 15360 * 15360
    };
    let reps = if l1 { 20000 } else { 1 };
    let b = &buffer((mb << 20) * if l1 { 1 } else { 4 }, huge);
    for e in [ElementType::F32, ElementType::F16, ElementType::BF16] {
        if !types.split(',').any(|t| t == e.to_string()) {
            continue;
        }
        fill(b, e);
        for &n in &ths {
            let seq = std::cell::Cell::new(0usize);
            // a fresh quarter of the buffer for each run
            let next = |seq: &std::cell::Cell<usize>| {
                let i = seq.get();
                seq.set(i + 1);
                if l1 { 0 } else { (i % 4) * (mb << 20) }
            };
            let sw = |o: usize| {
                threads(n, len, |p, l| {
                    for _ in 0..reps {
                        unsafe { sweep::<0>(b.at.add(o + p), l) }
                    }
                })
            };
            let mut speeds = vec![];
            print!("{e} x{n}:");
            for pairing in [Pairing::HalfSplit, Pairing::Interleaved] {
                print!(" {pairing:?}");
                for &d in &dims {
                    let angles: Vec<f64> = (0..d / 2)
                        .map(|i| 37.0 / 10000f64.powf(2.0 * i as f64 / d as f64))
                        .collect();
                    let cos: Vec<f32> = angles.iter().map(|a| a.cos() as f32).collect();
                    let plus: Vec<f32> = angles.iter().map(|a| a.sin() as f32).collect();
                    let minus: Vec<f32> = plus.iter().map(|s| -s).collect();
                    let f = kernels.turn(e, pairing);
                    let (mut r, mut sp) = (vec![], vec![]);
                    for round in 0..rounds + 1 {
                        let o = next(&seq);
                        let a = sw(o);
                        sw(o);
                        let o = next(&seq);
                        let run = |round: usize| {
                            threads(n, len, |p, l| {
                                for rep in 0..reps {
                                    let turn = Turn {
                                        half_stride: (d / 2) as isize,
                                        cos: &cos,
                                        sin: if (round + rep) % 2 == 0 {
                                            &plus
                                        } else {
                                            &minus
                                        },
                                    };
                                    unsafe {
                                        let p = b.at.add(o + p);
                                        f(
                                            p,
                                            p,
                                            &Walk::rows(
                                                l / ((d + gap) * e.size()),
                                                (d + gap) as isize,
                                            ),
                                            &turn,
                                        )
                                    };
                                }
                            })
                        };
                        let t = run(round);
                        let o = next(&seq);
                        let a2 = sw(o);
                        sw(o);
                        if round > 0 {
                            r.push((a + a2) / 2.0 / t);
                            speeds.push(2.0 * len as f64 / a / 1e9);
                            sp.push((len * reps) as f64 / t / 1e9);
                        }
                    }
                    if l1 {
                        print!(" {d}:{:.1}cyc", 64.0 * 3.66 / median(&mut sp));
                    } else {
                        print!(" {d}:{:.3}", median(&mut r));
                    }
                }
            }
            println!("   sweep {:.1} GB/s", median(&mut speeds));
        }
    }
}
