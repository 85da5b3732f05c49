//! The committed structs are what the Thrift compiler makes of `thrift/device.thrift`.

use std::path::Path;
use std::process::Command;

#[test]
fn the_generated_code_is_what_the_compiler_makes_of_the_idl() {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    let idl = package.join("../thrift/device.thrift");
    let out = Path::new(env!("CARGO_TARGET_TMPDIR")).join("generated");
    std::fs::create_dir_all(&out).expect("create the output directory");

    let run = Command::new("thrift").arg("-out").arg(&out).args(["--gen", "rs"]).arg(&idl).output();
    let run = run.unwrap_or_else(|error| {
        panic!("the Thrift compiler does not run ({error}): install it (apt-get install thrift-compiler)")
    });
    assert!(
        run.status.success(),
        "the Thrift compiler refuses the IDL:\n{}",
        String::from_utf8_lossy(&run.stderr)
    );

    let fresh = std::fs::read_to_string(out.join("device.rs")).expect("read what was generated");
    let committed =
        std::fs::read_to_string(package.join("src/gen/device.rs")).expect("read what is committed");
    assert!(
        fresh == committed,
        "wire/src/gen/device.rs is stale: run `thrift -out wire/src/gen --gen rs thrift/device.thrift`"
    );
}
