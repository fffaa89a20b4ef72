//! The local cloud as a provider of nodes for its controller.

use fcap_api::PublishedPort;
use fcap_api::cluster::{Flavor as ApiFlavor, FlavorSpec};
use fcap_cluster::flavor;
use fcap_cluster::provider::{Machine, Provider, ProviderError, Result, Wanted};
use futures_util::future::BoxFuture;

use super::{Cloud, CloudError, FLAVORS, Flavor, Node};

/// What the provider says of an error, with its causes.
fn failed(what: String) -> impl FnOnce(CloudError) -> ProviderError {
    move |error| match error {
        CloudError::NodeTaken(name) => ProviderError::NameTaken(name),
        CloudError::NoSuchFlavor { name } => {
            ProviderError::NoSuchFlavor { name, known: FLAVORS.map(|flavor| flavor.name).join(", ") }
        }
        error => ProviderError::Failed { what, reason: format!("{:#}", anyhow::Error::new(error)) },
    }
}

fn machine(node: Node) -> Machine {
    // The same port takes TLS and, for the commands of this computer, plain requests.
    let url = if node.is_member { format!("https://127.0.0.1:{}", node.port) } else { node.url() };
    Machine {
        url,
        name: node.name,
        flavor: Some(node.flavor),
        token: node.token,
        started_ms: node.started_ms,
        tag: node.tag,
    }
}

impl Cloud {
    /// Calls of a local cloud wait for QEMU.
    fn call<T: Send + 'static>(
        &self,
        what: String,
        work: impl FnOnce(&Self) -> super::Result<T> + Send + 'static,
    ) -> BoxFuture<'_, Result<T>> {
        let cloud = self.clone();
        Box::pin(async move {
            let done = tokio::task::spawn_blocking(move || work(&cloud)).await;
            let done = done.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()));
            done.map_err(failed(what))
        })
    }
}

impl Provider for Cloud {
    fn flavors(&self) -> Vec<ApiFlavor> {
        let specs = FLAVORS.map(|flavor| FlavorSpec {
            name: flavor.name.into(),
            vcpus: flavor.cpus,
            memory_mib: flavor.memory_mib.into(),
            reserved_memory_mib: None,
            price_per_hour: Some(flavor.price_per_hour),
        });
        flavor::check_all(&specs).expect("the local cloud's flavors make sense")
    }

    fn list(&self) -> BoxFuture<'_, Result<Vec<Machine>>> {
        self.call("list the nodes of the local cloud".into(), |cloud| {
            Ok(cloud.nodes()?.into_iter().map(machine).collect())
        })
    }

    fn create(&self, wanted: Wanted) -> BoxFuture<'_, Result<Machine>> {
        self.call(format!("start node {}", wanted.name), move |cloud| {
            let flavor = Flavor::named(&wanted.flavor)?;
            let say = |step: &str| tracing::info!(node = wanted.name, step);
            cloud.create(&wanted.name, flavor, &wanted.tag, &say).map(machine)
        })
    }

    fn destroy(&self, name: &str) -> BoxFuture<'_, Result<()>> {
        let name = name.to_owned();
        self.call(format!("destroy node {name}"), move |cloud| {
            cloud.remove(&name, &|step| tracing::info!(step))
        })
    }

    fn move_ports(&self, ports: Vec<PublishedPort>, from: &str, to: &str) -> BoxFuture<'_, Result<()>> {
        let (from, to) = (from.to_owned(), to.to_owned());
        self.call(format!("have ports lead to node {to}"), move |cloud| cloud.move_ports(&ports, &from, &to))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flavors_are_the_clouds_own() {
        let flavors = Cloud::new("any").unwrap().flavors();
        let names: Vec<&str> = flavors.iter().map(|flavor| flavor.name.as_str()).collect();
        assert_eq!(names, ["small", "medium", "large"]);
        assert!(flavors.iter().all(|flavor| flavor.price_micros > 0 && flavor.capacity.memory_kib > 0));
    }
}
