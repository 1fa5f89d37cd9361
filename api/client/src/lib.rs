//! A kube::Client over any tower service, with Muster's own calls: accept, decline, fence and the ordered watch.
