//! The one error type: every variant names the argument that is wrong and why.

/// What this crate's fallible functions return.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a call was refused. A refused call has written nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A rope cannot be built from these numbers.
    #[error("rope: {0}")]
    Rope(String),

    /// A model's `config.json` cannot be read as a rope; `key` is the path of the offending entry.
    #[error("config.json: `{key}`: {problem}")]
    Config {
        /// The entry, as a dotted path: `rope_scaling.factor`.
        key: String,
        /// What is wrong with it.
        problem: String,
    },

    /// An edit does not fit the sequence or another edit.
    #[error("edit {index}: {problem}")]
    Edit {
        /// Index of the edit in the list as it was given.
        index: usize,
        /// What is wrong with it.
        problem: String,
    },

    /// Positions or rows from which no plan can be made, or two plans that do not chain.
    #[error("plan: {0}")]
    Plan(String),

    /// A cache layout that does not describe non-overlapping rows inside the buffer.
    #[error("layout: {0}")]
    Layout(String),

    /// The arguments of a verb do not fit together.
    #[error("{argument}: {problem}")]
    Argument {
        /// The argument's name.
        argument: &'static str,
        /// What is wrong with it.
        problem: String,
    },

    /// No graphics adapter to run on; says what there is instead.
    #[error("no device: {0}")]
    NoAdapter(String),

    /// A limit of the device, the system or the kernels that a call would go past.
    #[error("limit: {0}")]
    Limit(String),

    /// The device, or the host, has no memory left.
    #[error("out of memory: {0}")]
    OutOfMemory(String),

    /// The device is gone: its driver was reset, or it was unplugged.
    #[error("device lost: {0}")]
    DeviceLost(String),

    /// The device, or the API that it is reached by, refused something.
    #[error("device: {0}")]
    Device(String),
}
