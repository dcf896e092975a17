// Package api defines the resources that the datastore holds: their Go types, defaults, names, etcd keys and JSON.
//
// The goals, and how each is met:
//
//  1. What is written is what Calico v3.32 writes: struct fields stand in the order in which they are stored, and a golden
//     test compares bytes.
//  2. What a newer or a foreign writer stored survives our read-modify-write: Encode takes the bytes that were read and keeps
//     every field that our types do not know.
//  3. What is read is complete: Decode applies the defaults that older writers left out.
//  4. A kind of resource is one file: its types, with what a field may hold in the field's `want` tag (check.go), its Kind, and as
//     far as it needs them Default, validate, validateUpdate, refuses, references, compare, toStored and fromStored, which the package finds by
//     their names. Besides, it is named twice in registry.go.
//  5. Nobody outside needs a switch over kinds: Lookup, Kind.New, Read, SetDefaults, Validate…, KeyOf and EncodeObject work on any Object.
//  6. Of a bad object everything that is wrong is told at once, each with the field's path, the value, and what is allowed.
//
// An object has two forms, which differ for policies (their names) and workload endpoints (their labels): the one that people write, which
// is what all functions but Decode and Encode deal with, and the stored one.
//
// The package is pure. Values are plain data: treat a decoded value as read-only when it is shared, and Clone it to change it.
package api
