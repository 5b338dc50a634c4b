//! Worlds: network namespaces with no way out.
