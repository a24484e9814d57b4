//! The config file on disk, which may change while the operator runs.

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use cert_renew_core::config::{Config, Faults};

/// Largest file that is read, in bytes: a ConfigMap holds at most 1 MiB.
const MAX_FILE: u64 = 1 << 20;

/// The text, or why there is none.
type Read = Result<String, String>;

/// Reads and checks the file at `path`, once.
///
/// # Errors
/// When it cannot be read or has faults; the error contains all of them.
pub fn load(path: &Path) -> Result<Config, Faults> {
    ConfigFile::open(path).map(|(_, config)| config)
}

/// A file that is read repeatedly. It remembers the last content, so that each version is judged once.
#[derive(Debug)]
pub struct ConfigFile {
    path: PathBuf,
    seen: Read,
}

impl ConfigFile {
    /// Reads and checks the file at `path`.
    ///
    /// # Errors
    /// When it cannot be read or has faults; the error contains all of them.
    pub fn open(path: &Path) -> Result<(Self, Config), Faults> {
        let seen = read(path);
        let config = judge(path, &seen)?;
        let path = path.to_path_buf();
        Ok((Self { path, seen }, config))
    }

    /// Reads the file, and checks it if it has changed since the last look; `None` if it has not.
    ///
    /// It is read whole each time, up to [`MAX_FILE`] bytes: a mounted ConfigMap changes by a link, and neither size
    /// nor time are reliable. The faults are those of the file, or that it cannot be read.
    pub fn look(&mut self) -> Option<Result<Config, Faults>> {
        let read = read(&self.path);
        if self.seen == read {
            return None;
        }
        self.seen = read;
        Some(judge(&self.path, &self.seen))
    }
}

fn read(path: &Path) -> Read {
    let mut text = String::new();
    let read = File::open(path).and_then(|file| file.take(MAX_FILE + 1).read_to_string(&mut text));
    match read {
        Err(error) => Err(format!("cannot be read: {error}")),
        Ok(_) if text.len() as u64 > MAX_FILE => Err(format!("expected at most {MAX_FILE} bytes")),
        Ok(_) => Ok(text),
    }
}

fn judge(path: &Path, read: &Read) -> Result<Config, Faults> {
    let result = match read {
        Ok(text) => Config::parse(text),
        Err(why) => Err(Faults::whole(why.clone(), None)),
    };
    result.map_err(|faults| Faults {
        file: Some(path.to_path_buf()),
        ..faults
    })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn each_version_is_judged_once() {
        let path = std::env::temp_dir().join(format!("cert-renew-{}.yaml", std::process::id()));
        fs::write(&path, "issuers: {}").unwrap();
        let (mut file, _) = ConfigFile::open(&path).unwrap();
        let mut look = |text: Option<&str>| {
            match text {
                Some(text) => fs::write(&path, text).unwrap(),
                None => fs::remove_file(&path).unwrap(),
            }
            let judged = file.look();
            assert!(file.look().is_none(), "the same version again");
            judged
        };
        assert!(look(Some("issuers: {}")).is_none());
        let faults = look(Some("issuers: []")).unwrap().unwrap_err();
        assert_eq!(faults.file, Some(path.clone()));
        assert!(look(Some("issuers: {} # again")).unwrap().is_ok());
        let gone = look(None).unwrap().unwrap_err().to_string();
        assert!(gone.contains("cannot be read"), "{gone}");
        assert!(look(Some("issuers: {}")).unwrap().is_ok());
        fs::remove_file(&path).unwrap();
    }

    #[test]
    fn what_cannot_be_read_says_so() {
        let faults = load(Path::new("testdata/config/nowhere.yaml"))
            .unwrap_err()
            .to_string();
        assert!(
            faults.contains("nowhere.yaml: cannot be read: No such file"),
            "{faults}"
        );
        let big =
            std::env::temp_dir().join(format!("cert-renew-config-{}.yaml", std::process::id()));
        fs::write(&big, "#".repeat(1 << 21)).unwrap();
        let faults = load(&big).unwrap_err().to_string();
        fs::remove_file(&big).unwrap();
        assert!(
            faults.ends_with("expected at most 1048576 bytes"),
            "{faults}"
        );
    }
}
