//! resolvers
