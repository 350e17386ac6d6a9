//! Every backend runs every case against the f64 oracle.
//!
//! Cases are data ([`case`]), what happens to the rows of each is data too ([`pattern`]), and backends
//! plug in by one line ([`backend::candidates`]). The list of tests is made at run time, so that a
//! backend which is absent shows as *ignored, with the reason*; it fails instead if
//! `PIE_ROPE_REQUIRE` demands it (a list of backend names, or `all`).
//!
//! Before all that the check itself is held to finding what a backend may do wrong ([`faults`]).
//!
//! Data is fresh and random in every run. `PIE_ROPE_SEED` repeats a run.

mod backend;
mod buffer;
mod case;
mod check;
#[cfg(feature = "cuda")]
mod cuda;
mod faults;
#[cfg(feature = "wgpu")]
mod gpu;
mod pattern;
#[path = "../support/mod.rs"]
mod support;

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use libtest_mimic::{Arguments, Completion, Failed, Trial};
use rand::SeedableRng;
use rand::rngs::SmallRng;

use backend::{Backend, Candidate};
use buffer::Keys;
use case::Case;
use check::Worst;

fn main() -> std::process::ExitCode {
    let arguments = Arguments::from_args();
    let seed = seed();
    let required = std::env::var("PIE_ROPE_REQUIRE").unwrap_or_default();
    let required: Vec<&str> = required
        .split(',')
        .map(str::trim)
        .filter(|name| !name.is_empty())
        .collect();

    let candidates = backend::candidates();
    let known = |name: &&&str| **name == "all" || candidates.iter().any(|c| c.name == ***name);
    if let Some(unknown) = required.iter().find(|name| !known(name)) {
        eprintln!("PIE_ROPE_REQUIRE: this build has no backend `{unknown}`");
        return std::process::ExitCode::FAILURE;
    }

    let keys = Arc::new(Keys::new(&mut SmallRng::seed_from_u64(seed)));
    let mut trials = faults::trials(seed, &keys);
    let mut reports = Vec::new();
    for Candidate {
        name,
        takes,
        backend,
    } in candidates
    {
        let demanded = required
            .iter()
            .any(|required| *required == "all" || *required == name);
        let f32_loss = backend.as_ref().map_or(1.0, |backend| backend.f32_loss());
        let worst = Arc::new(Worst::new(f32_loss));
        let backend: Arc<Result<Box<dyn Backend>, String>> = Arc::new(backend);
        for case in Case::all().into_iter().filter(takes) {
            let (backend, keys, worst) = (backend.clone(), keys.clone(), worst.clone());
            trials.push(Trial::ignorable_test(
                format!("{name} {case}"),
                move || match &*backend {
                    Ok(backend) => match check::case(&case, &**backend, seed, &keys, &worst) {
                        Ok(()) => Ok(Completion::Completed),
                        Err(problem) => Err(Failed::from(problem)),
                    },
                    Err(reason) if demanded => {
                        Err(Failed::from(format!("demanded, but absent: {reason}")))
                    }
                    Err(reason) => Ok(Completion::ignored_with(reason)),
                },
            ));
        }
        reports.push((name, worst));
    }

    if !arguments.list {
        println!("seed {seed} (PIE_ROPE_SEED repeats it)");
    }
    let conclusion = libtest_mimic::run(&arguments, trials);
    if !arguments.list {
        println!(
            "worst error, in units in the last place of the stored type at the magnitude of the pair:"
        );
        for (name, worst) in reports {
            println!("  {name}");
            worst.lines().iter().for_each(|line| println!("    {line}"));
        }
    }
    conclusion.exit_code()
}

fn seed() -> u64 {
    match std::env::var("PIE_ROPE_SEED") {
        Ok(seed) => seed.parse().expect("PIE_ROPE_SEED is a number"),
        Err(_) => {
            let now = SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .expect("after 1970");
            now.as_nanos() as u64
        }
    }
}
