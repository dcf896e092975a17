package kube

import (
	"context"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// SayNetwork sets the Node's condition NetworkUnavailable, in Calico's words. It waits for ctx.
func SayNetwork(ctx context.Context, server API, node string, up bool) error {
	now := metav1.NewTime(time.Now())
	c := corev1.NodeCondition{Type: corev1.NodeNetworkUnavailable, LastTransitionTime: now, LastHeartbeatTime: now}
	if up {
		c.Status, c.Reason, c.Message = corev1.ConditionFalse, "CalicoIsUp", "Calico is running on this node"
	} else {
		c.Status, c.Reason, c.Message = corev1.ConditionTrue, "CalicoIsDown", "Calico is shutting down on this node"
	}
	if err := server.PatchNode(ctx, node, c); err != nil {
		return fmt.Errorf("set the condition NetworkUnavailable of Node %s in Kubernetes: %w", node, err)
	}
	return nil
}
