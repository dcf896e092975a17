// Package controllers mirrors Kubernetes objects into etcd and audits addresses: what Calico's kube-controllers do.
//
// The goals, and how each is met:
//
//  1. What is written depends on what both sides hold, not on the events that came before: an event only names a key to look at, and every key
//     is looked at again now and then. So nothing is lost by a restart, or while etcd or the API server is away.
//  2. Nothing is deleted by mistake: not before Kubernetes' caches are complete, not while etcd has no ClusterInformation or a locked one, and not
//     before the API server itself has said that the object is gone. Only what bears our names, or our label, is deleted at all.
//  3. Two at once do no harm: each write is a compare-and-swap on what was read, and what one undoes wrongly the other's watch sees. A Lease
//     makes it one at a time all the same.
//  4. An address in use is never freed: see audit.
//  5. One bad object stops nothing else: each key fails and is tried again alone, and is named in the log once.
package controllers
