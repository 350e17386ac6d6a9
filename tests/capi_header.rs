//! `include/pie_rope.h` is what cbindgen makes of `src/capi`. `UPDATE=1` writes it.

use std::path::Path;

#[test]
fn header_is_up_to_date() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let config = cbindgen::Config::from_file(root.join("cbindgen.toml")).expect("cbindgen.toml");
    // It follows the modules from there.
    let source = root.join("src/capi/mod.rs");
    let builder = cbindgen::Builder::new()
        .with_config(config)
        .with_src(source);
    let mut made = Vec::new();
    builder.generate().expect("src/capi").write(&mut made);
    let made = String::from_utf8(made).expect("UTF-8");

    let path = root.join("include/pie_rope.h");
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(&path, &made).expect("include");
    }
    let committed = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        made == committed,
        "include/pie_rope.h is out of date: run it again with UPDATE=1"
    );
}
