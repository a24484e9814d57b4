//! The binary of the image, as `make image-check` takes it out of the archive.

use std::io::Read as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

use flate2::read::ZlibDecoder;
use serde_json::Value;
use test_bench::objects::{OLD, Reference, Space, pair};
use test_bench::{Bench, Context as _, Operator, OperatorOptions, Result, ensure};

use crate::renewal::{renewed, rolled_out};

fn program() -> Result<String> {
    env::var("CERT_RENEW_PROGRAM").context("CERT_RENEW_PROGRAM names the binary")
}

fn architecture() -> String {
    env::var("ARCH").unwrap_or_else(|_| "amd64".into())
}

/// What runs the binary: itself, or a script that runs it by an emulator, which becomes the very process that is started.
fn runnable() -> Result<PathBuf> {
    let program = program()?;
    if architecture() == "amd64" {
        return Ok(program.into());
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let found = Command::new(root.join("tests/tools.sh"))
        .arg("qemu-aarch64")
        .output()?;
    ensure!(found.status.success(), "no qemu-aarch64");
    let emulator = String::from_utf8(found.stdout)?;
    let script = root.join("target/image/emulated");
    let text = format!("#!/bin/sh\nexec {} {program} \"$@\"\n", emulator.trim());
    fs::write(&script, text)?;
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755))?;
    Ok(script)
}

#[tokio::test]
#[ignore = "make image-check runs it"]
async fn the_binary_of_the_image_renews_and_rolls() -> Result<()> {
    let bench = Bench::shared().await?;
    let operator = Operator::start(bench, OperatorOptions::new(runnable()?)).await?;
    let space = Space::new(bench.client()?, "image", operator.namespace()).await?;
    let old = pair(&["image.example"], OLD)?;
    space
        .workload("Deployment", "web", Reference::Volume, "tls")
        .await?;
    // A zone and a root: both are inside.
    let annotations = [
        ("issuer", "pebble"),
        ("change-window", "Mon-Sun 00:00-24:00 Europe/Berlin"),
    ];
    space.tls_secret("tls", Some(&old), &annotations).await?;
    renewed(&space, "tls", &old.certificate).await?;
    rolled_out(&space, "tls").await?;
    assert_eq!(space.generation("Deployment", "web").await?, 2);
    Ok(())
}

/// The clients of most DNS hosts trust what is in this file.
#[test]
#[ignore = "make image-check runs it"]
fn the_image_has_the_roots_of_public_cas() -> Result<()> {
    let program = PathBuf::from(program()?);
    let root = program.parent().context("a path")?;
    let file = fs::read(root.join("etc/ssl/certs/ca-certificates.crt"))?;
    let roots = cert_renew_core::certificate::certificates(&file)?;
    ensure!(roots.len() > 100, "{} certificates", roots.len());
    Ok(())
}

/// Little-endian numbers of an ELF file.
fn number(file: &[u8], at: usize, bytes: usize) -> Result<usize> {
    let bytes = file.get(at..at + bytes).context("the file ends")?;
    let value = bytes
        .iter()
        .rev()
        .fold(0, |value: usize, byte| value << 8 | usize::from(*byte));
    Ok(value)
}

/// The content of a section (elf(5), 64 bits).
fn section<'a>(file: &'a [u8], wanted: &str) -> Result<&'a [u8]> {
    let (table, size) = (number(file, 0x28, 8)?, number(file, 0x3a, 2)?);
    let (count, names) = (number(file, 0x3c, 2)?, number(file, 0x3e, 2)?);
    let names = number(file, table + names * size + 0x18, 8)?;
    for header in (0..count).map(|index| table + index * size) {
        let name = &file[names + number(file, header, 4)?..];
        if name.starts_with(wanted.as_bytes()) && name.get(wanted.len()) == Some(&0) {
            let (at, length) = (
                number(file, header + 0x18, 8)?,
                number(file, header + 0x20, 8)?,
            );
            return file.get(at..at + length).context("the file ends");
        }
    }
    Err(test_bench::Error::msg(format!("no section {wanted}")))
}

/// Static, of the architecture that it says, with the list of what it is made of and no path of the machine that made it.
#[test]
#[ignore = "make image-check runs it"]
fn the_binary_of_the_image_says_what_it_is_made_of() -> Result<()> {
    let file = fs::read(program()?)?;
    let machine = match number(&file, 0x12, 2)? {
        0x3e => "amd64",
        0xb7 => "arm64",
        other => panic!("machine {other}"),
    };
    assert_eq!(machine, architecture());
    let (headers, size) = (number(&file, 0x20, 8)?, number(&file, 0x36, 2)?);
    for index in 0..number(&file, 0x38, 2)? {
        let kind = number(&file, headers + index * size, 4)?;
        assert_ne!(kind, 3, "it names an interpreter, so that it is not static");
    }
    let mut list = String::new();
    ZlibDecoder::new(section(&file, ".dep-v0")?).read_to_string(&mut list)?;
    let list: Value = serde_json::from_str(&list)?;
    let packages = list["packages"].as_array().context("no packages")?;
    for name in ["cert-renew", "kube-client", "rustls", "aws-lc-rs"] {
        let found = packages.iter().any(|package| package["name"] == name);
        ensure!(found, "{name} is not in the list");
    }
    let home = env::var("CARGO_HOME").or_else(|_| env::var("HOME").map(|it| it + "/.cargo"))?;
    for path in [env!("CARGO_MANIFEST_DIR"), &home] {
        let found = file.windows(path.len()).any(|part| part == path.as_bytes());
        ensure!(!found, "{path} is in the binary");
    }
    eprintln!("{} packages, {} bytes", packages.len(), file.len());
    Ok(())
}
