//! Behind nginx and HAProxy.
