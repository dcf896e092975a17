package main

import (
	"encoding/base64"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/muslin-cni/muslin/internal/authority"
)

// makePKI makes two authorities, Kubernetes' and etcd's, and what both sign for the programs of the cluster.
func (c *cluster) makePKI() error {
	if err := os.MkdirAll(c.pki(), 0o700); err != nil {
		return fmt.Errorf("make folder for certificates: %w", err)
	}
	ca, err := authority.New("kubernetes")
	if err != nil {
		return err
	}
	err = c.writePair("ca", ca.Pair(), nil)
	server, signErr := ca.Server(controlIP, controlIP6, "127.0.0.1", "10.96.0.1", "localhost",
		"kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local")
	err = errors.Join(err, c.writePair("apiserver", server, signErr))
	for name, who := range map[string]struct{ user, group string }{
		"apiserver-kubelet": {"kube-apiserver", "system:masters"},
		"front-proxy":       {"front-proxy", ""},
		"accounts":          {"service-accounts", ""}, // only its key counts: it signs tokens
	} {
		pair, signErr := ca.Member(who.user, who.group)
		err = errors.Join(err, c.writePair(name, pair, signErr))
	}
	err = errors.Join(err,
		c.writeKubeconfig(ca, c.kubeconfig(), "admin", "system:masters"),
		c.writeKubeconfig(ca, filepath.Join(c.pki(), "controller-manager.conf"), "system:kube-controller-manager", ""),
		c.writeKubeconfig(ca, filepath.Join(c.pki(), "scheduler.conf"), "system:kube-scheduler", ""))
	for _, n := range c.nodes() {
		err = errors.Join(err,
			c.writeKubeconfig(ca, filepath.Join(c.nodeDir(n.Name), "kubelet.conf"), "system:node:"+n.Name, "system:nodes"),
			c.writeKubeconfig(ca, filepath.Join(c.nodeDir(n.Name), "kube-proxy.conf"), "system:kube-proxy", "system:node-proxier"))
	}
	return errors.Join(err, c.makeEtcdPKI())
}

// makeEtcdPKI makes etcd's authority, its own certificate, and one that all of its clients share.
func (c *cluster) makeEtcdPKI() error {
	ca, err := authority.New("etcd")
	if err != nil {
		return err
	}
	server, err := ca.Server(controlIP, "127.0.0.1")
	if err != nil {
		return err
	}
	client, err := ca.Client("client", authority.Forever())
	if err != nil {
		return err
	}
	return errors.Join(ca.Write(c.etcdAuthorityDir(), ca.Pair()), ca.Write(filepath.Join(c.pki(), "etcd"), server), ca.Write(c.etcdClientDir(), client))
}

// etcdAuthorityDir has what signs more of etcd's certificates.
func (c *cluster) etcdAuthorityDir() string { return filepath.Join(c.pki(), "etcd-authority") }

// etcdClientDir has what a client of etcd needs, under package authority's names.
func (c *cluster) etcdClientDir() string { return filepath.Join(c.pki(), "etcd-client") }

func (c *cluster) writePair(name string, pair authority.Pair, err error) error {
	if err != nil {
		return err
	}
	return errors.Join(
		os.WriteFile(filepath.Join(c.pki(), name+".crt"), pair.Cert, 0o644),
		os.WriteFile(filepath.Join(c.pki(), name+".key"), pair.Key, 0o600))
}

// writeKubeconfig writes what makes its reader that user.
func (c *cluster) writeKubeconfig(ca *authority.CA, path, user, group string) error {
	pair, err := ca.Member(user, group)
	if err != nil {
		return err
	}
	text := base64.StdEncoding.EncodeToString
	config := fmt.Sprintf(`apiVersion: v1
kind: Config
current-context: c
clusters: [{name: c, cluster: {server: "https://%s:6443", certificate-authority-data: %s}}]
contexts: [{name: c, context: {cluster: c, user: u}}]
users: [{name: u, user: {client-certificate-data: %s, client-key-data: %s}}]
`, controlIP, text(ca.Pair().Cert), text(pair.Cert), text(pair.Key))
	return os.WriteFile(path, []byte(config), 0o600)
}
