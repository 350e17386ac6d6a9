//! Declares in Rust what `include/pie_rope.h` declares in C, so that the target `capi` calls what a C program calls.
//! The header is cbindgen's, so its forms are few; one that is not known here stops the build.

use std::fmt::Write;
use std::path::Path;
use std::{env, fs};

const HEADER: &str = "../include/pie_rope.h";

fn main() {
    println!("cargo:rerun-if-changed={HEADER}");
    println!("cargo:rerun-if-changed=build.rs");
    let header = fs::read_to_string(HEADER).expect("the header");
    let into = Path::new(&env::var_os("OUT_DIR").expect("by cargo")).join("header.rs");
    fs::write(into, declarations(&header)).expect("OUT_DIR");
}

fn declarations(header: &str) -> String {
    let mut rust = String::new();
    let mut text = String::new();
    let mut comment = false;
    let mut left_out = false;
    for line in header.lines() {
        comment |= line.starts_with("/*");
        let skipped = comment;
        comment &= !line.ends_with("*/");
        let line = line.split("//").next().expect("the first part").trim();
        match line.split_whitespace().collect::<Vec<_>>()[..] {
            _ if skipped => {}
            // CUDA, C++, and the guard of the header, which closes last.
            ["#if", ..] | ["#ifdef", ..] => left_out = true,
            ["#endif", ..] => left_out = false,
            _ if left_out => {}
            ["#define", name, number] => {
                writeln!(rust, "pub const {name}: i32 = {number};").expect("a string");
            }
            ["#ifndef", ..] | ["#define", ..] | ["#include", ..] => {}
            _ => text.extend([line, " "]),
        }
    }
    let mut functions = String::new();
    while !text.trim().is_empty() {
        // A struct's own semicolons are inside its braces.
        let end = match (text.find(';'), text.find('{')) {
            (Some(end), Some(brace)) if brace < end => {
                brace + text[brace..].find('}').expect("closed")
            }
            (Some(end), _) => end,
            _ => panic!("no semicolon after {text}"),
        };
        let end = end + text[end..].find(';').expect("a semicolon");
        let item = text[..end].trim().to_owned();
        text.replace_range(..=end, "");
        if let Some(item) = item.strip_prefix("typedef struct ") {
            structure(item, &mut rust);
        } else {
            function(&item, &mut functions);
        }
    }
    format!("{rust}unsafe extern \"C\" {{\n{functions}}}\n")
}

/// `name {fields} name`, or `name name` of what C sees the pointers of.
fn structure(item: &str, into: &mut String) {
    let (name, fields) = match item.split_once('{') {
        Some((name, rest)) => (name.trim(), rest.split_once('}').expect("closed").0),
        None => (item.split_whitespace().next().expect("a name"), ""),
    };
    let fields = fields.split(';').filter(|field| !field.trim().is_empty());
    let mut fields: Vec<_> = fields
        .map(|field| format!("pub {}", variable(field)))
        .collect();
    let derive = if fields.is_empty() {
        fields.push("inside: [u8; 0]".into());
        ""
    } else {
        "#[derive(Clone, Copy)] "
    };
    writeln!(
        into,
        "#[repr(C)] {derive}pub struct {name} {{ {} }}",
        fields.join(", ")
    )
    .expect("a string");
}

/// `type name(parameters)`.
fn function(item: &str, into: &mut String) {
    let (head, parameters) = item.split_once('(').expect("a function");
    let parameters = parameters.trim_end_matches(')');
    let parameters: Vec<_> = match parameters {
        "void" => vec![],
        _ => parameters.split(',').map(variable).collect(),
    };
    let head = variable(head);
    let (name, returned) = head.split_once(": ").expect("a name and a type");
    let returned = match returned {
        "c_void" => String::new(),
        other => format!(" -> {other}"),
    };
    writeln!(into, "pub fn {name}({}){returned};", parameters.join(", ")).expect("a string");
}

/// `type name`, where the type may be a pointer.
fn variable(text: &str) -> String {
    let spaced = text.replace('*', " * ");
    let mut words: Vec<_> = spaced
        .split_whitespace()
        .filter(|word| *word != "struct")
        .collect();
    let name = words.pop().expect("a name");
    let mut constant = false;
    let mut rust = String::new();
    for word in words {
        match word {
            "const" => constant = true,
            "*" => {
                rust = format!("*{} {rust}", if constant { "const" } else { "mut" });
                constant = false;
            }
            "int32_t" => rust = "i32".into(),
            "uint32_t" => rust = "u32".into(),
            "size_t" => rust = "usize".into(),
            "double" => rust = "f64".into(),
            "char" => rust = "c_char".into(),
            "void" => rust = "c_void".into(),
            name if name.starts_with("pie_rope_") => rust = name.into(),
            other => panic!("the type {other} in {text}"),
        }
    }
    format!("{name}: {rust}")
}
