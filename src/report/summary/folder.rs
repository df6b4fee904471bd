//! A summary as files in a folder: for the artefacts of a CI job, or to look at later.

use std::fs::{self, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::{Summary, markdown, mermaid, svg};
use crate::local::SCHEMA;

/// A file of the summary couldn't be written.
#[derive(Debug, thiserror::Error)]
#[error("{}: {source}", path.display())]
pub struct FolderError {
    /// Which.
    pub path: PathBuf,
    /// Why.
    pub source: io::Error,
}

#[derive(Serialize)]
struct Document<'a> {
    schema: u32,
    #[serde(flatten)]
    summary: &'a Summary,
}

/// Writes `summary.json`, `summary.md`, `timeline.mmd` and `timeline.svg` into `folder`, which is made if need be. Each
/// file is there whole or as it was before.
///
/// # Errors
/// The first file that couldn't be written.
pub fn write(folder: &Path, summary: &Summary) -> Result<(), FolderError> {
    let failed = |path: PathBuf| move |source| FolderError { path, source };
    fs::create_dir_all(folder).map_err(failed(folder.to_owned()))?;
    let json = serde_json::to_string_pretty(&Document { schema: SCHEMA, summary });
    let json = json.map_err(|error| failed(folder.join("summary.json"))(error.into()))?;
    let files = [
        ("summary.json", json + "\n"),
        ("summary.md", markdown(summary)),
        ("timeline.mmd", mermaid(summary)),
        ("timeline.svg", svg(summary)),
    ];
    for (name, text) in files {
        replace(folder, name, &text).map_err(failed(folder.join(name)))?;
    }
    Ok(())
}

fn replace(folder: &Path, name: &str, text: &str) -> io::Result<()> {
    // As any new file: the umask takes away what others shan't.
    let mode = Permissions::from_mode(0o666);
    let mut file = tempfile::Builder::new().prefix(name).permissions(mode).tempfile_in(folder)?;
    file.write_all(text.as_bytes())?;
    file.persist(folder.join(name))?;
    Ok(())
}
