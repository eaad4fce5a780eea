//! x
mod capability;
mod config;
mod image;
