//! Pure allocation: a snapshot in; offers, rescinds and a why-not report out.
