//! Images for the real node, packed from files of this machine: there is no registry, and nothing is downloaded.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use aws_lc_rs::digest;
use serde_json::{Value, json};

/// Directory of the libraries in an image.
const LIBRARIES: &str = "lib/all";
/// Dynamic loaders that every Linux program names, on x86-64 and on arm64.
const LOADERS: [&str; 2] = ["/lib64/ld-linux-x86-64.so.2", "/lib/ld-linux-aarch64.so.1"];

/// An image under construction: a directory that becomes its only layer.
pub(crate) struct Image {
    root: PathBuf,
    work: PathBuf,
}

impl Image {
    /// Begins an image in a directory of its own.
    pub(crate) fn new(directory: &Path, name: &str) -> Result<Self> {
        let work = directory.join(format!("image-{name}"));
        let root = work.join("root");
        for inside in ["tmp", LIBRARIES, "lib64"] {
            fs::create_dir_all(root.join(inside))?;
        }
        fs::set_permissions(root.join("tmp"), fs::Permissions::from_mode(0o1777))?;
        Ok(Self { root, work })
    }

    /// Adds a file with this text.
    pub(crate) fn file(&self, path: &str, text: &str) -> Result<()> {
        let path = self.root.join(path);
        fs::create_dir_all(path.parent().context("a path without a directory")?)?;
        fs::write(&path, text).with_context(|| format!("writing {}", path.display()))
    }

    /// Adds an empty directory.
    pub(crate) fn directory(&self, path: &str) -> Result<()> {
        Ok(fs::create_dir_all(self.root.join(path))?)
    }

    /// Adds a program to its root directory, and the libraries that it is linked with.
    pub(crate) fn program(&self, name: &str, program: &Path, libraries: &str) -> Result<()> {
        let copy = |from: &Path, to: &str| {
            let to = self.root.join(to);
            fs::copy(from, &to).with_context(|| format!("copying {}", from.display()))?;
            Ok::<_, anyhow::Error>(fs::set_permissions(to, fs::Permissions::from_mode(0o755))?)
        };
        copy(program, name)?;
        let listed = Command::new("ldd")
            .arg(program)
            .env("LD_LIBRARY_PATH", libraries)
            .output()
            .context("ldd says which libraries a program needs")?;
        // For a static program it reports that, and fails.
        let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
        ensure!(
            !listed.contains("not found"),
            "{}: {listed}",
            program.display()
        );
        let paths: BTreeSet<&str> = listed
            .split_whitespace()
            .filter(|word| word.starts_with('/'))
            .collect();
        for path in paths {
            let file = Path::new(path).file_name().context("no file name")?;
            let to = match LOADERS.contains(&path) {
                true => path.trim_start_matches('/').to_owned(),
                false => format!("{LIBRARIES}/{}", file.display()),
            };
            copy(Path::new(path), &to)?;
        }
        Ok(())
    }

    /// Writes the archive in OCI format, with the image's full name.
    pub(crate) fn pack(self, name: &str, entrypoint: &[&str]) -> Result<PathBuf> {
        let layout = self.work.join("layout");
        fs::create_dir_all(layout.join("blobs/sha256"))?;
        let layer = self.work.join("layer");
        tar(&layer, &self.root, &["."])?;
        let layer = blob(&layout, fs::read(&layer)?)?;
        let config = json!({
            "architecture": if cfg!(target_arch = "x86_64") { "amd64" } else { "arm64" },
            "os": "linux",
            "config": {
                "Entrypoint": entrypoint,
                // The operator's pods may not run as root, as its Containerfile has it.
                "User": if name == crate::OPERATOR_IMAGE { "65532" } else { "0" },
                "Env": ["PATH=/", format!("LD_LIBRARY_PATH=/{LIBRARIES}")],
            },
            "rootfs": {"type": "layers", "diff_ids": [layer["digest"]]},
        });
        let typed = |mut blob: Value, kind: &str| {
            blob["mediaType"] = format!("application/vnd.oci.image.{kind}").into();
            blob
        };
        let config = blob(&layout, config.to_string().into_bytes())?;
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": typed(config, "config.v1+json"),
            "layers": [typed(layer, "layer.v1.tar")],
        });
        let manifest = blob(&layout, manifest.to_string().into_bytes())?;
        let mut manifest = typed(manifest, "manifest.v1+json");
        manifest["annotations"] = json!({"org.opencontainers.image.ref.name": name});
        let index = json!({"schemaVersion": 2, "manifests": [manifest]});
        fs::write(layout.join("index.json"), index.to_string())?;
        fs::write(
            layout.join("oci-layout"),
            json!({"imageLayoutVersion": "1.0.0"}).to_string(),
        )?;
        let archive = self.work.with_extension("tar");
        tar(&archive, &layout, &["blobs", "index.json", "oci-layout"])?;
        fs::remove_dir_all(&self.work)?;
        Ok(archive)
    }
}

/// Stores a blob by its digest, and returns its descriptor.
fn blob(layout: &Path, bytes: Vec<u8>) -> Result<Value> {
    let hash = digest::digest(&digest::SHA256, &bytes);
    let hash: String = hash.as_ref().iter().map(|b| format!("{b:02x}")).collect();
    let size = bytes.len();
    fs::write(layout.join("blobs/sha256").join(&hash), bytes)?;
    Ok(json!({"digest": format!("sha256:{hash}"), "size": size}))
}

fn tar(archive: &Path, directory: &Path, what: &[&str]) -> Result<()> {
    let status = Command::new("tar")
        .arg("-cf")
        .arg(archive)
        .arg("-C")
        .arg(directory)
        .args(["--owner=0", "--group=0", "--numeric-owner"])
        .args(what)
        .status()?;
    ensure!(status.success(), "tar of {}: {status}", directory.display());
    Ok(())
}
