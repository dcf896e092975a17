package install

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/muslin-cni/muslin/internal/apiserver"
)

// kubeconfigName is the file of the plugin's own credentials, beside the network configuration.
const kubeconfigName = "calico-kubeconfig"

// tokenLife is how long a token is asked for. It is renewed at half of what the API server grants.
const tokenLife = 24 * time.Hour

// account makes kubeconfigs with tokens that end.
type account interface {
	// kubeconfig returns one, and until when it is good.
	kubeconfig(context.Context) (text []byte, until time.Time, err error)
}

// kubeconfig writes the plugin's own credentials, where settings ask for them and those that are there get old. Where they do not, what an operator
// may have put there is left.
func (i *Installer) kubeconfig(ctx context.Context) error {
	path := filepath.Join(i.s.NetDir, kubeconfigName)
	if i.account == nil || i.now().Before(i.renew) {
		return nil
	}
	text, until, err := i.account.kubeconfig(ctx)
	if err != nil {
		return fmt.Errorf("get a token of service account %s: %w", i.s.Account, err)
	}
	if _, err := writeFile(path, text, 0o600); err != nil {
		return fmt.Errorf("write the kubeconfig: %w", err)
	}
	i.renew = i.now().Add(until.Sub(i.now()) / 2)
	return nil
}

// podAccount asks for tokens as the pod that this process runs in.
type podAccount struct {
	api    *apiserver.Client
	name   string
	folder string // with the pod's own credentials
	server string
}

func openAccount(name string, env func(string) string) (account, error) {
	api, err := apiserver.New("", env)
	if err != nil {
		return nil, err
	}
	host := net.JoinHostPort(env("KUBERNETES_SERVICE_HOST"), env("KUBERNETES_SERVICE_PORT"))
	return podAccount{api: api, name: name, folder: apiserver.ServiceAccount, server: "https://" + host}, nil
}

func (a podAccount) kubeconfig(ctx context.Context) ([]byte, time.Time, error) {
	namespace, err := os.ReadFile(filepath.Join(a.folder, "namespace"))
	if err != nil {
		return nil, time.Time{}, err
	}
	ca, err := os.ReadFile(filepath.Join(a.folder, "ca.crt"))
	if err != nil {
		return nil, time.Time{}, err
	}
	var got struct {
		Status struct {
			Token               string    `json:"token"`
			ExpirationTimestamp time.Time `json:"expirationTimestamp"`
		} `json:"status"`
	}
	ask := map[string]any{
		"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest",
		"spec": map[string]any{"expirationSeconds": int(tokenLife.Seconds())},
	}
	path := "/api/v1/namespaces/" + url.PathEscape(strings.TrimSpace(string(namespace))) + "/serviceaccounts/" + url.PathEscape(a.name) + "/token"
	if err := a.api.Create(ctx, path, ask, &got); err != nil {
		return nil, time.Time{}, err
	}
	text, err := kubeconfigOf(a.server, ca, got.Status.Token)
	return text, got.Status.ExpirationTimestamp, err
}

// kubeconfigOf is a kubeconfig as JSON, which is YAML too.
func kubeconfigOf(server string, ca []byte, token string) ([]byte, error) {
	const name = "muslin"
	type object = map[string]any
	return json.MarshalIndent(object{
		"apiVersion": "v1", "kind": "Config", "current-context": name,
		"clusters": []object{{"name": name, "cluster": object{"server": server, "certificate-authority-data": ca}}},
		"users":    []object{{"name": name, "user": object{"token": token}}},
		"contexts": []object{{"name": name, "context": object{"cluster": name, "user": name}}},
	}, "", "  ")
}
