//! How a command ends.

/// What a command that worked has found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Done; exit code 0.
    Done,
    /// The answer is no: a fault was found, nothing matches; exit code 1.
    No,
}

/// What could not be done: one sentence with a next step; exit code 2.
#[derive(Debug)]
pub struct Failure {
    /// A stable word for programs.
    pub code: String,
    /// What, which, why, and what to do.
    pub sentence: String,
}

impl Failure {
    /// A failure of this program itself.
    pub fn new(sentence: impl Into<String>) -> Self {
        Self { code: "failed".to_owned(), sentence: sentence.into() }
    }
}

impl<E: std::error::Error> From<E> for Failure {
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
        Self::new(sentence)
    }
}
