pub mod address;
pub mod outcome;
