//! What is wrong with a config file, all of it at once.

use std::error::Error;
use std::fmt;
use std::path::PathBuf;

/// Why a config file is refused; never empty.
///
/// Displayed as one line a fault, `file:line: path: value: expected …`, as compilers do, so that editors can jump.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Faults {
    /// The file; `None` if the text came from elsewhere.
    pub file: Option<PathBuf>,
    /// In the order of the file.
    pub list: Vec<Fault>,
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Line in the file, from 1, if one is at fault.
    pub line: Option<u64>,
    /// Where in the tree, such as `issuers.letsencrypt.allow[0].names[1]`; empty for the file as a whole.
    pub path: String,
    /// The value found, quoted and cut; `None` if it is obvious.
    pub found: Option<String>,
    /// The expected value, or what else is wrong.
    pub expected: String,
}

impl Faults {
    /// The fault of a file that cannot be read.
    #[must_use]
    pub fn whole(expected: String, line: Option<u64>) -> Self {
        let fault = Fault {
            line,
            path: String::new(),
            found: None,
            expected,
        };
        Self {
            file: None,
            list: vec![fault],
        }
    }
}

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, fault) in self.list.iter().enumerate() {
            if i > 0 {
                writeln!(f)?;
            }
            match &self.file {
                Some(file) => write!(f, "{}:", file.display())?,
                None => f.write_str("config:")?,
            }
            if let Some(line) = fault.line {
                write!(f, "{line}:")?;
            }
            write!(f, " {fault}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.path.is_empty() {
            write!(f, "{}: ", self.path)?;
        }
        if let Some(found) = &self.found {
            write!(f, "{found}: ")?;
        }
        f.write_str(&self.expected)
    }
}

impl Error for Faults {}
