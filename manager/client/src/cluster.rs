//! What a cluster's controller adds.

use super::{Client, Lines, REQUEST, Reference, Result};
use fcap_api::cluster::{
    AddNode, AuditEntry, Bill, ClusterNode, Drain, MakeToken, MoveTo, Operation, Placement, Policy,
    PolicyResult, PolicyRun, PolicySpec, Replace, TestPolicy, Token, UpdateClusterNode, View,
};
use reqwest::Method;

impl Client {
    /// The cluster's nodes.
    pub async fn cluster_nodes(&self) -> Result<Vec<ClusterNode>> {
        self.get("/v1/nodes").await
    }

    /// One node of the cluster.
    pub async fn cluster_node(&self, name: &str) -> Result<ClusterNode> {
        self.get(&format!("/v1/nodes/{name}")).await
    }

    /// Has the provider start a node.
    pub async fn add_node(&self, add: &AddNode) -> Result<Operation> {
        self.json(self.request(Method::POST, "/v1/nodes").json(add)).await
    }

    /// Lets one machine join the cluster.
    pub async fn make_token(&self, make: &MakeToken) -> Result<Token> {
        self.json(self.request(Method::POST, "/v1/tokens").json(make)).await
    }

    /// Changes what the controller keeps of a node.
    pub async fn update_cluster_node(&self, name: &str, update: &UpdateClusterNode) -> Result<ClusterNode> {
        self.json(self.request(Method::PATCH, &format!("/v1/nodes/{name}")).json(update)).await
    }

    /// Lets nothing new come to a node, or lets it again.
    pub async fn cordon(&self, name: &str, cordoned: bool) -> Result<ClusterNode> {
        let verb = if cordoned { "cordon" } else { "uncordon" };
        self.json(self.request(Method::POST, &format!("/v1/nodes/{name}/{verb}"))).await
    }

    /// Moves all capsules of a node away.
    pub async fn drain(&self, name: &str, drain: &Drain) -> Result<Operation> {
        self.json(self.request(Method::POST, &format!("/v1/nodes/{name}/drain")).json(drain)).await
    }

    /// Starts a node, moves everything to it, and destroys the old one.
    pub async fn replace(&self, name: &str, replace: &Replace) -> Result<Operation> {
        self.json(self.request(Method::POST, &format!("/v1/nodes/{name}/replace")).json(replace)).await
    }

    /// Destroys a node.
    pub async fn remove_node(&self, name: &str, force: bool) -> Result<Operation> {
        self.json(self.request(Method::DELETE, &format!("/v1/nodes/{name}?force={force}"))).await
    }

    /// What the controller does and has done.
    pub async fn operations(&self) -> Result<Vec<Operation>> {
        self.get("/v1/operations").await
    }

    /// One operation.
    pub async fn operation(&self, id: &str) -> Result<Operation> {
        self.get(&format!("/v1/operations/{id}")).await
    }

    /// One operation, now and after each of its steps, to its end.
    pub async fn follow_operation(&self, id: &str) -> Result<Lines<Operation>> {
        let answer = self.send(self.request(Method::GET, &format!("/v1/operations/{id}/follow"))).await?;
        Ok(Lines::new(answer, self))
    }

    /// Stops an operation.
    pub async fn cancel_operation(&self, id: &str) -> Result<Operation> {
        self.json(self.request(Method::POST, &format!("/v1/operations/{id}/cancel"))).await
    }

    /// Goes on with an operation that has stopped.
    pub async fn resume_operation(&self, id: &str) -> Result<Operation> {
        self.json(self.request(Method::POST, &format!("/v1/operations/{id}/resume"))).await
    }

    /// Why a capsule is where it is.
    pub async fn placement(&self, of: &Reference) -> Result<Placement> {
        self.get(&format!("/v1/capsules/{of}/placement")).await
    }

    /// Moves a running capsule.
    pub async fn move_to(&self, of: &Reference, order: &MoveTo) -> Result<Operation> {
        self.json(self.request(Method::POST, &format!("/v1/capsules/{of}/move")).json(order)).await
    }

    /// The cluster as placement and policies see it.
    pub async fn view(&self) -> Result<View> {
        self.get("/v1/view").await
    }

    /// The policies that the controller runs.
    pub async fn policies(&self) -> Result<Vec<Policy>> {
        self.get("/v1/policies").await
    }

    /// One policy.
    pub async fn policy(&self, name: &str) -> Result<Policy> {
        self.get(&format!("/v1/policies/{name}")).await
    }

    /// Has a policy be run, in place of the one that had its name.
    pub async fn apply_policy(&self, name: &str, spec: &PolicySpec) -> Result<Policy> {
        self.json(self.request(Method::PUT, &format!("/v1/policies/{name}")).json(spec)).await
    }

    /// Has a policy not be run any more.
    pub async fn remove_policy(&self, name: &str) -> Result<()> {
        let request = self.request(Method::DELETE, &format!("/v1/policies/{name}"));
        self.send(request.timeout(REQUEST)).await.map(drop)
    }

    /// Says what a policy would do; nothing is done.
    pub async fn test_policy(&self, name: &str, test: &TestPolicy) -> Result<PolicyResult> {
        self.json(self.request(Method::POST, &format!("/v1/policies/{name}/test")).json(test)).await
    }

    /// What policies did, or one of them, the latest first; at most so many.
    pub async fn policy_history(&self, policy: Option<&str>, limit: usize) -> Result<Vec<PolicyRun>> {
        let of = policy.map(|policy| format!("&policy={policy}")).unwrap_or_default();
        self.get(&format!("/v1/history?limit={limit}{of}")).await
    }

    /// What the cluster costs, and has cost since then, or since its first node was started.
    pub async fn cost(&self, since_ms: Option<u64>) -> Result<Bill> {
        let since = since_ms.map(|since| format!("?since_ms={since}")).unwrap_or_default();
        self.get(&format!("/v1/cost{since}")).await
    }

    /// Who did what: so many latest entries, in their order, and then those to come.
    pub async fn follow_audit(&self, latest: usize) -> Result<Lines<AuditEntry>> {
        let answer =
            self.send(self.request(Method::GET, &format!("/v1/audit/follow?latest={latest}"))).await?;
        Ok(Lines::new(answer, self))
    }

    /// Who did what, the latest first.
    pub async fn audit(&self) -> Result<Vec<AuditEntry>> {
        self.json(self.request(Method::GET, "/v1/audit").timeout(REQUEST)).await
    }
}
