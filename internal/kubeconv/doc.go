// Package kubeconv turns Kubernetes objects into resources.
//
// It computes and does nothing else. Names, labels and profiles follow what Calico's own conversion writes, so that policy written for it selects
// the same pods.
package kubeconv
