//! Devices: how a frontend follows its backend's state in xenstore.

use crate::xenstore::{self, Error, Watch};
use alloc::{boxed::Box, format, string::String, vec::Vec};
use core::{future::poll_fn, pin::Pin, task::Poll};
use xen_proto::{DomId, xenbus::State};

/// A device of which we are the frontend.
pub(crate) struct Device {
    /// Our directory.
    path: String,
    /// The backend's.
    backend_path: String,
    /// The backend's domain.
    pub(crate) backend: DomId,
    changes: Watch,
}

impl Device {
    /// Finds a device's backend: `kind` as `vif`, `number` as the toolstack counts them.
    ///
    /// # Errors
    /// If there is no such device.
    pub(crate) async fn open(kind: &str, number: usize) -> Result<Self, Error> {
        let path = format!("device/{kind}/{number}");
        let names = [format!("{path}/backend"), format!("{path}/backend-id")];
        let mut values = read_all(&names).await.into_iter();
        let mut next = || values.next().expect("each read has a result");
        let backend_path = text(&next()?)?;
        let backend = text(&next()?)?.parse().map(DomId).map_err(|_| Error::Answer)?;
        let changes = xenstore::watch(&format!("{backend_path}/state")).await?;
        Ok(Self { path, backend_path, backend, changes })
    }

    /// The backend's state, if it is there.
    pub(crate) async fn backend_state(&self) -> Option<State> {
        let value = xenstore::read(&format!("{}/state", self.backend_path)).await;
        value.ok().and_then(|value| State::parse(&value))
    }

    /// Waits until the backend's state may have changed.
    pub(crate) async fn changed(&mut self) {
        self.changes.next().await;
    }

    /// Which of the backend's features are there: nodes with the value 1.
    pub(crate) async fn features<const N: usize>(&self, names: [&str; N]) -> [bool; N] {
        let paths: Vec<String> = names.iter().map(|name| format!("{}/{name}", self.backend_path)).collect();
        let values = read_all(&paths).await;
        core::array::from_fn(|at| values[at].as_deref() == Ok(b"1"))
    }

    /// Writes nodes of ours, in order, and then our state.
    ///
    /// The backend looks at the nodes when the state changes, so that no transaction is needed,
    /// and xenstored takes requests of one domain in their order, so that none is waited for.
    ///
    /// # Errors
    /// If one cannot be written.
    pub(crate) async fn publish(&self, nodes: &[(&str, &str)], state: State) -> Result<(), Error> {
        let write = |name: &str, value: &[u8]| {
            let (path, value) = (format!("{}/{name}", self.path), value.to_vec());
            Box::pin(async move { xenstore::write(&path, &value).await })
        };
        let mut writes: Vec<_> = nodes.iter().map(|(name, value)| write(name, value.as_bytes())).collect();
        writes.push(write("state", &state.value()));
        all(writes).await.into_iter().collect()
    }
}

fn text(value: &[u8]) -> Result<String, Error> {
    str::from_utf8(value).map(Into::into).map_err(|_| Error::Answer)
}

async fn read_all(paths: &[String]) -> Vec<Result<Vec<u8>, Error>> {
    all(paths.iter().map(|path| Box::pin(xenstore::read(path))).collect()).await
}

/// Waits for all futures, and returns their results in order.
async fn all<F: Future>(mut futures: Vec<Pin<Box<F>>>) -> Vec<F::Output> {
    let mut results: Vec<Option<F::Output>> = futures.iter().map(|_| None).collect();
    poll_fn(|cx| {
        let mut is_done = true;
        for (future, result) in futures.iter_mut().zip(&mut results) {
            if result.is_none() {
                match future.as_mut().poll(cx) {
                    Poll::Ready(found) => *result = Some(found),
                    Poll::Pending => is_done = false,
                }
            }
        }
        if is_done { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
    results.into_iter().map(|result| result.expect("all are done")).collect()
}
