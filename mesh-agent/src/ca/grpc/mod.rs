//! As much of gRPC over HTTP/2 as two methods need
//! (<https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md>).

mod client;
mod frame;
mod status;

pub use client::{Channel, Responses};
pub use frame::{Frames, encode};
pub use status::{Code, Status};
