// Package api defines the resources that the datastore holds: their Go types, defaults, names, etcd keys and JSON.
//
// The goals, and how each is met:
//
//  1. What is written is what Calico v3.32 writes: struct fields stand in the order in which they are stored, and a golden
//     test compares bytes.
//  2. What a newer or a foreign writer stored survives our read-modify-write: Encode takes the bytes that were read and keeps
//     every field that our types do not know.
//  3. What is read is complete: Decode applies the defaults that older writers left out.
//
// The package is pure. Values are plain data: treat a decoded value as read-only when it is shared, and Clone it to change it.
package api
