//! Capsules that move, and their images.

use super::{Client, ClientError, Lines, REQUEST, Result};
use fcap_api::migrate::{
    IMAGE_MEDIA_TYPE, Invitation, Migrate, MigrationIdentity, Progress, SaveMode, Ticket,
};
use fcap_api::{Capsule, ErrorBody};
use reqwest::{Method, Response};

impl Client {
    /// How other nodes know it.
    pub async fn migration_identity(&self) -> Result<MigrationIdentity> {
        self.get("/v1/migrations/identity").await
    }

    /// Has it take a capsule in.
    pub async fn invite(&self, invitation: &Invitation) -> Result<Ticket> {
        self.json(self.request(Method::POST, "/v1/migrations").json(invitation)).await
    }

    /// Has it move a capsule. Dropping what is returned ends that, as long as the capsule is there.
    pub async fn migrate(&self, id: &str, order: &Migrate) -> Result<Lines<Progress>> {
        let request = self.request(Method::POST, &format!("/v1/capsules/{id}/migrate")).json(order);
        let answer = self.send(request).await?;
        Ok(Lines::new(answer, self))
    }

    /// A capsule's image, piece by piece.
    pub async fn save(&self, id: &str, mode: SaveMode) -> Result<Saving> {
        let mode = match mode {
            SaveMode::Save => "save",
            SaveMode::Checkpoint => "checkpoint",
            SaveMode::Clone => "clone",
        };
        let request = self.request(Method::POST, &format!("/v1/capsules/{id}/save?mode={mode}"));
        let answer = self.send(request).await?;
        Ok(Saving { answer, client: self.clone(), capsule: id.to_owned() })
    }

    /// Why a capsule's last image has broken off; nothing if it has not.
    pub async fn broken(&self, id: &str) -> Result<Option<ErrorBody>> {
        self.get(&format!("/v1/capsules/{id}/save")).await
    }

    /// Says that a capsule's image is in safety.
    pub async fn saved(&self, id: &str) -> Result<()> {
        let request = self.request(Method::POST, &format!("/v1/capsules/{id}/saved"));
        self.send(request.timeout(REQUEST)).await.map(drop)
    }

    /// Makes a capsule of an image; with `name` one beside that which was saved.
    pub async fn restore(&self, name: Option<&str>, image: reqwest::Body) -> Result<Capsule> {
        // Names have nothing in them that a URL would change.
        let query = name.map(|name| format!("?name={name}")).unwrap_or_default();
        let request = self
            .request(Method::POST, &format!("/v1/restore{query}"))
            .header("content-type", IMAGE_MEDIA_TYPE)
            .body(image);
        let answer = self.send(request).await?;
        self.parse(answer).await
    }
}

/// An image on its way.
#[derive(Debug)]
pub struct Saving {
    answer: Response,
    client: Client,
    capsule: String,
}

impl Saving {
    /// The next piece; none when that was all.
    ///
    /// # Errors
    /// When the capsule could not be saved after all, or the connection breaks.
    pub async fn next(&mut self) -> Result<Option<Vec<u8>>> {
        match self.answer.chunk().await {
            Ok(chunk) => Ok(chunk.map(|chunk| chunk.to_vec())),
            // The connection shows only that the image breaks off.
            Err(error) => Err(match self.client.broken(&self.capsule).await {
                Ok(Some(body)) => ClientError::Refused(body),
                _ => self.client.failed(&error),
            }),
        }
    }

    /// All of it, to be sent on.
    pub fn into_body(self) -> reqwest::Body {
        reqwest::Body::wrap_stream(self.answer.bytes_stream())
    }
}
