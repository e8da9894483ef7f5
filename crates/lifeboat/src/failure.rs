//! How a command ends.

use std::error::Error;

use lifeboat_client::VaultError;
use lifeboat_transport::ClientError;

/// What a command that worked has found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Done; exit code 0.
    Done,
    /// The answer is no: a fault was found, or what was asked for has failed; exit code 1.
    No,
}

/// What could not be done: one sentence with a next step; exit code 2.
#[derive(Debug)]
pub struct Failure {
    /// A stable word for programs.
    pub code: String,
    /// What, which, why, and what to do.
    pub sentence: String,
    /// Finds the request in the vault's log, when the vault refused it.
    pub request_id: Option<String>,
}

impl Failure {
    /// A failure of this program itself.
    pub fn new(sentence: impl Into<String>) -> Self {
        Self::coded("failed", sentence)
    }

    /// A failure with a word of its own for programs.
    pub fn coded(code: &str, sentence: impl Into<String>) -> Self {
        Self { code: code.to_owned(), sentence: sentence.into(), request_id: None }
    }

    /// As programs read it: the vault's `ErrorBody`.
    pub fn json(&self) -> serde_json::Value {
        let mut error = serde_json::json!({"code": self.code, "message": self.sentence});
        if let Some(id) = &self.request_id {
            error["request_id"] = id.as_str().into();
        }
        serde_json::json!({"error": error})
    }
}

impl<E: Error + 'static> From<E> for Failure {
    fn from(error: E) -> Self {
        let mut sentence = error.to_string();
        let mut source = error.source();
        while let Some(cause) = source {
            let text = cause.to_string();
            // Many errors already quote their cause; saying it twice helps nobody.
            if !sentence.contains(&text) {
                sentence = format!("{sentence}: {text}");
            }
            source = cause.source();
        }
        let (code, request_id) = call_failed(&error).unwrap_or(("failed", None));
        Self { request_id, ..Self::coded(code, sentence) }
    }
}

/// The word for a call to the vault that failed, and the request's id when the vault answered.
fn call_failed<'a>(error: &'a (dyn Error + 'static)) -> Option<(&'a str, Option<String>)> {
    let error = match error.downcast_ref::<VaultError>() {
        Some(VaultError::Client(error)) => error,
        Some(VaultError::Trust(_)) => return Some(("certificate_unusable", None)),
        None => error.downcast_ref::<ClientError>()?,
    };
    Some(match error {
        ClientError::Api { code, request_id, .. } => {
            (code, Some(request_id.clone()).filter(|id| !id.is_empty()))
        }
        ClientError::Unreachable { .. } => ("unreachable", None),
        ClientError::Tls { .. } => ("no_trust", None),
        ClientError::Address { .. } => ("address", None),
        ClientError::Credentials(_) => ("certificate_unusable", None),
        ClientError::BadBody { .. } | ClientError::BodyTooLarge { .. } => ("bad_answer", None),
        ClientError::Source { .. } | ClientError::BadRequest(_) => ("failed", None),
    })
}
