//! The identity of a node that control is to know again: its machine key and its node key, in one file.
//!
//! It is written before control hears of a key, so that a node whose first answer was lost, with its process or without,
//! comes back with the same keys: an auth key that is good for one use lets in no others.

use std::fs::File;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nixtail_proto::control::Entry;
use nixtail_proto::key::{MachinePrivate, NodePrivate, NodePublic};
use nixtail_proto::secret::Secret;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::{StateError, StateFolder, file};

/// The file.
const FILE: &str = "identity.json";
/// What is locked as long as an agent uses it.
const LOCK: &str = "identity.lock";
/// The form of the file. Another one is another version's.
const SCHEMA: u32 = 1;

/// A node's identity, kept in a file. Clones are handles of the same. No other agent can use it meanwhile.
#[derive(Debug, Clone)]
pub struct KeptIdentity {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    path: PathBuf,
    login_server: String,
    keys: Mutex<Keys>,
    _lock: File,
}

/// What stands in the file.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Keys {
    machine: MachinePrivate,
    node: NodePrivate,
    /// The node key that `node` takes the place of, until control has agreed.
    old_node: Option<NodePublic>,
    known: Known,
}

/// Whether control knows the node key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Known {
    /// It was never told.
    No,
    /// It was told, and no answer was seen.
    Perhaps,
    /// It has let it in.
    Yes,
}

/// The file's form.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Form {
    schema: u32,
    login_server: String,
    machine_key: Secret,
    node_key: Secret,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    old_node_key: Option<NodePublic>,
    known: Known,
}

impl StateFolder {
    /// The identity towards this control server that is kept here; a new one from `rng`, which is kept as soon as it is
    /// used, where there is none.
    ///
    /// # Errors
    /// When another agent uses it, when it is one towards another control server, and when it can't be read: it is never
    /// replaced by a new one.
    pub fn identity(&self, login_server: &str, rng: &mut dyn rand::CryptoRng) -> Result<KeptIdentity, StateError> {
        let path = self.path.join(FILE);
        let lock = file::lock(&self.path.join(LOCK))?.ok_or_else(|| StateError::InUse(self.path.clone()))?;
        let login_server = login_server.trim_end_matches('/').to_owned();
        let keys = match file::read(&path)? {
            Some(content) => {
                let (keys, of) = parse(&content).map_err(|why| StateError::Identity { path: path.clone(), why })?;
                if of != login_server {
                    return Err(StateError::OtherServer { path, of, wanted: login_server });
                }
                keys
            }
            None => Keys {
                machine: MachinePrivate::generate(rng),
                node: NodePrivate::generate(rng),
                old_node: None,
                known: Known::No,
            },
        };
        let inner = Inner { path, login_server, keys: Mutex::new(keys), _lock: lock };
        Ok(KeptIdentity { inner: Arc::new(inner) })
    }
}

impl KeptIdentity {
    /// Who the machine is to control.
    #[must_use]
    pub fn machine_key(&self) -> MachinePrivate {
        self.keys().machine.clone()
    }

    /// Who the node is to everybody.
    #[must_use]
    pub fn node_key(&self) -> NodePrivate {
        self.keys().node.clone()
    }

    /// The node key that it takes the place of, while control hasn't agreed to that.
    #[must_use]
    pub fn old_node_key(&self) -> Option<NodePublic> {
        self.keys().old_node
    }

    /// How a registration with it begins.
    #[must_use]
    pub fn entry(&self) -> Entry {
        match self.keys().known {
            Known::No => Entry::New,
            Known::Perhaps => Entry::Unanswered,
            Known::Yes => Entry::Known,
        }
    }

    /// A registration with it is about to be sent.
    pub(crate) fn handle_sent(&self) -> Result<(), StateError> {
        self.change(|keys| keys.known = keys.known.max_of(Known::Perhaps))
    }

    /// Control has let it in.
    pub(crate) fn handle_registered(&self) -> Result<(), StateError> {
        self.change(|keys| (keys.known, keys.old_node) = (Known::Yes, None))
    }

    /// The node key has ended, and this is the next one.
    pub(crate) fn handle_new_node_key(&self, key: &NodePrivate) -> Result<(), StateError> {
        self.change(|keys| {
            keys.old_node = Some(keys.node.public());
            (keys.node, keys.known) = (key.clone(), Known::No);
        })
    }

    /// Control was told that this node is no more: the file goes.
    pub(crate) fn handle_logged_out(&self) -> Result<(), StateError> {
        file::remove(&self.inner.path)
    }

    /// Changes the keys, and the file with them.
    fn change(&self, change: impl FnOnce(&mut Keys)) -> Result<(), StateError> {
        let mut current = self.keys();
        let mut keys = current.clone();
        change(&mut keys);
        if keys == *current {
            return Ok(());
        }
        let form = Form {
            schema: SCHEMA,
            login_server: self.inner.login_server.clone(),
            machine_key: Secret::new(keys.machine.expose_hex().to_string()),
            node_key: Secret::new(keys.node.expose_hex().to_string()),
            old_node_key: keys.old_node,
            known: keys.known,
        };
        let failed =
            |error: serde_json::Error| StateError::File { path: self.inner.path.clone(), source: error.into() };
        let mut text = Zeroizing::new(serde_json::to_vec_pretty(&form).map_err(failed)?);
        text.push(b'\n');
        file::replace(&self.inner.path, &text)?;
        // Only now: what isn't on disk isn't so.
        *current = keys;
        Ok(())
    }

    fn keys(&self) -> MutexGuard<'_, Keys> {
        self.inner.keys.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Known {
    fn max_of(self, other: Self) -> Self {
        if self == Self::No { other } else { self }
    }
}

/// The keys in a file's content, and of which control server they are. Says what is wrong without any of the content.
fn parse(content: &[u8]) -> Result<(Keys, String), String> {
    #[derive(Deserialize)]
    struct Schema {
        schema: u32,
    }
    let Schema { schema } = serde_json::from_slice(content).map_err(|error| match error.classify() {
        serde_json::error::Category::Eof => "it ends in the middle".to_owned(),
        _ => "it isn't one that nixtail has written".to_owned(),
    })?;
    if schema != SCHEMA {
        return Err(format!("its form has number {schema}, and this version of nixtail knows {SCHEMA}"));
    }
    let form: Form = serde_json::from_slice(content)
        .map_err(|error| format!("something in line {} is missing or too much", error.line()))?;
    let keys = Keys {
        machine: MachinePrivate::from_hex(form.machine_key.expose()).map_err(|error| error.to_string())?,
        node: NodePrivate::from_hex(form.node_key.expose()).map_err(|error| error.to_string())?,
        old_node: form.old_node_key,
        known: form.known,
    };
    Ok((keys, form.login_server))
}

#[cfg(test)]
mod tests;
