//! All nodes that a command speaks to, as if they were one.

use crate::client::{Client, ClientError, Reference};
use crate::output::short_id;
use fcap_api::{Capsule, ErrorCode};
use futures_util::future::join_all;

/// A capsule that could not be found, or not for certain.
#[derive(Debug, thiserror::Error)]
pub enum FindError {
    /// No node has it.
    #[error("no such capsule: {reference}; `fcap ps -a` shows all")]
    None {
        /// What was asked for.
        reference: Reference,
    },
    /// Several fit.
    #[error("{reference} is ambiguous, it fits several capsules: {candidates}; give more of the id")]
    Ambiguous {
        /// What was asked for.
        reference: Reference,
        /// What fits.
        candidates: String,
    },
    /// It was not found, and a node did not answer that may have it.
    #[error("{reference} was not found, and a node could not be asked")]
    Unsure {
        /// What was asked for.
        reference: Reference,
        /// Why not.
        source: ClientError,
    },
    /// The only node refused.
    #[error(transparent)]
    Client(#[from] ClientError),
}

/// Nodes.
#[derive(Clone, Debug)]
pub struct Fleet {
    nodes: Vec<Client>,
}

/// Answers of all nodes, and the failures of those that gave none.
#[derive(Debug)]
pub struct Answers<T> {
    /// In the order of the nodes.
    pub values: Vec<T>,
    /// What went wrong.
    pub failures: Vec<ClientError>,
}

impl<T> Answers<Vec<T>> {
    /// All values in one list.
    pub fn flat(self) -> Answers<T> {
        Answers { values: self.values.into_iter().flatten().collect(), failures: self.failures }
    }
}

impl<T> Answers<T> {
    /// The values, if no node failed or at least one answered: then failures are only noted on
    /// standard error, because one dead node must not hide the others.
    ///
    /// # Errors
    /// When no node answered.
    pub fn noted(mut self) -> Result<(Vec<T>, bool), ClientError> {
        if self.values.is_empty()
            && let Some(first) = self.failures.pop()
        {
            return Err(first);
        }
        for failure in &self.failures {
            eprintln!("fcap: {failure}");
        }
        Ok((self.values, self.failures.is_empty()))
    }
}

impl Fleet {
    /// Of these nodes.
    pub fn new(nodes: Vec<Client>) -> Self {
        Self { nodes }
    }

    /// The nodes.
    pub fn nodes(&self) -> &[Client] {
        &self.nodes
    }

    /// Asks all nodes at once.
    pub async fn ask<'a, T, F>(&'a self, question: impl Fn(&'a Client) -> F) -> Answers<T>
    where
        F: Future<Output = Result<T, ClientError>> + 'a,
    {
        let mut answers = Answers { values: Vec::new(), failures: Vec::new() };
        for answer in join_all(self.nodes.iter().map(question)).await {
            match answer {
                Ok(value) => answers.values.push(value),
                Err(error) => answers.failures.push(error),
            }
        }
        answers
    }

    /// Finds one capsule by id, unique prefix or name, and the node it is on.
    ///
    /// # Errors
    /// When none fits, or several do.
    pub async fn find(&self, reference: &Reference) -> Result<(&Client, Capsule), FindError> {
        let answers = join_all(self.nodes.iter().map(|node| node.capsule(reference))).await;
        let mut found = Vec::new();
        let mut failure = None;
        for (node, answer) in self.nodes.iter().zip(answers) {
            match answer {
                Ok(capsule) => found.push((node, capsule)),
                Err(error) if error.code() == Some(ErrorCode::NoSuchCapsule) => {}
                // The server lists the candidates.
                Err(error) if error.code() == Some(ErrorCode::Ambiguous) => return Err(error.into()),
                Err(error) => failure = Some(error),
            }
        }
        // A whole id or name goes before what only starts so, as on one node.
        let text = reference.as_str();
        let is_whole = |capsule: &Capsule| capsule.id == text || capsule.name == text;
        if found.iter().filter(|(_, capsule)| is_whole(capsule)).count() == 1 {
            found.retain(|(_, capsule)| is_whole(capsule));
        }
        let reference = reference.clone();
        match (found.len(), failure) {
            (1, _) => Ok(found.swap_remove(0)),
            (0, None) => Err(FindError::None { reference }),
            (0, Some(error)) if self.nodes.len() == 1 => Err(error.into()),
            (0, Some(source)) => Err(FindError::Unsure { reference, source }),
            _ => {
                let candidates = found
                    .iter()
                    .map(|(_, capsule)| {
                        format!("{} ({} on {})", short_id(&capsule.id, false), capsule.name, capsule.node)
                    })
                    .collect::<Vec<_>>()
                    .join(", ");
                Err(FindError::Ambiguous { reference, candidates })
            }
        }
    }

    /// Refuses a name that a capsule of another node bears. A node itself refuses its own.
    ///
    /// # Errors
    /// When the name is taken.
    pub async fn check_name(&self, name: &str, on: &Client) -> Result<(), ClientError> {
        let Ok(reference) = name.parse::<Reference>() else {
            return Ok(()); // The node says what is wrong with it.
        };
        let others = self.nodes.iter().filter(|node| node.address() != on.address());
        for capsule in join_all(others.map(|node| node.capsule(&reference))).await.into_iter().flatten() {
            if capsule.name == name {
                return Err(ClientError::Refused(fcap_api::ErrorBody {
                    code: ErrorCode::NameTaken,
                    message: format!(
                        "the name {name} is taken by capsule {} on node {}; remove or rename that one",
                        short_id(&capsule.id, false),
                        capsule.node
                    ),
                }));
            }
        }
        Ok(())
    }
}
