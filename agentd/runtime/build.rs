//! Builds the first process of containers that containerd makes (`init/main.rs`): a static program without any library, carried by this crate.

use std::path::PathBuf;
use std::process::Command;

fn main() {
    println!("cargo::rerun-if-changed=init");
    println!("cargo::rustc-check-cfg=cfg(has_init)");
    let var = |name: &str| std::env::var(name).unwrap_or_default();
    let linux = var("CARGO_CFG_TARGET_OS") == "linux";
    if !linux || !matches!(var("CARGO_CFG_TARGET_ARCH").as_str(), "x86_64" | "aarch64") {
        // Without it, the containerd runtime says that it is not possible here.
        return;
    }
    let out = PathBuf::from(var("OUT_DIR")).join("muster-init");
    let mut rustc = Command::new(var("RUSTC"));
    rustc.args([
        "--edition=2024",
        "--crate-name=muster_init",
        "--crate-type=bin",
        "--target",
        &var("TARGET"),
    ]);
    rustc.args([
        "-Copt-level=s",
        "-Cpanic=abort",
        "-Cstrip=symbols",
        "-Crelocation-model=static",
    ]);
    rustc.args(["-Ctarget-feature=+crt-static", "-Cforce-unwind-tables=no"]);
    rustc.args([
        "-Clink-arg=-nostartfiles",
        "-Clink-arg=-nostdlib",
        "-Clink-arg=-static",
        "-Clink-arg=-Wl,-z,noexecstack",
    ]);
    if let Ok(linker) = std::env::var("RUSTC_LINKER") {
        rustc.arg(format!("-Clinker={linker}"));
    }
    let built = rustc.arg("-o").arg(&out).arg("init/main.rs").status();
    assert!(
        built.as_ref().is_ok_and(std::process::ExitStatus::success),
        "building init/main.rs: {built:?}"
    );
    println!("cargo::rustc-cfg=has_init");
}
