//! Start order.
