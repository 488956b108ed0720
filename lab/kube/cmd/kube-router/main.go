// kube-router's NetworkPolicy controller alone, without its routing and its service proxy: the lab's policy engine.
package main

import (
	"context"
	"flag"
	"log"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"github.com/cloudnativelabs/kube-router/v2/pkg/controllers/netpol"
	"github.com/cloudnativelabs/kube-router/v2/pkg/healthcheck"
	"github.com/cloudnativelabs/kube-router/v2/pkg/options"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/clientcmd"
)

func main() {
	config := options.NewKubeRouterConfig()
	config.EnableIPv4 = true
	config.IPTablesSyncPeriod = time.Minute
	flag.StringVar(&config.Kubeconfig, "kubeconfig", "", "credentials for the API server")
	flag.StringVar(&config.HostnameOverride, "node", "", "name of the Kubernetes node this is")
	flag.StringVar(&config.ClusterIPCIDRs[0], "service-cidr", "10.96.0.0/16", "addresses of Services")
	flag.Parse()

	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	if err := run(ctx, config); err != nil {
		log.Fatal(err)
	}
}

// run enforces every NetworkPolicy on this node's pods until ctx ends.
func run(ctx context.Context, config *options.KubeRouterConfig) error {
	credentials, err := clientcmd.BuildConfigFromFlags("", config.Kubeconfig)
	if err != nil {
		return err
	}
	client, err := kubernetes.NewForConfig(credentials)
	if err != nil {
		return err
	}
	factory := informers.NewSharedInformerFactory(client, 0)
	pods := factory.Core().V1().Pods().Informer()
	namespaces := factory.Core().V1().Namespaces().Informer()
	policies := factory.Networking().V1().NetworkPolicies().Informer()
	factory.Start(ctx.Done())
	factory.WaitForCacheSync(ctx.Done())

	iptables, ipsets, err := netpol.NewIPTablesHandlers(config)
	if err != nil {
		return err
	}
	controller, err := netpol.NewNetworkPolicyController(client, config, pods, policies, namespaces, &sync.Mutex{}, iptables, ipsets)
	if err != nil {
		return err
	}
	for informer, handler := range map[cache.SharedIndexInformer]cache.ResourceEventHandler{
		pods: controller.PodEventHandler, namespaces: controller.NamespaceEventHandler, policies: controller.NetworkPolicyEventHandler,
	} {
		if _, err := informer.AddEventHandler(handler); err != nil {
			return err
		}
	}

	heartbeats := make(chan *healthcheck.ControllerHeartbeat)
	go discard(heartbeats)
	var done sync.WaitGroup
	done.Add(1)
	controller.Run(heartbeats, ctx.Done(), &done)
	done.Wait()
	return nil
}

// discard takes the heartbeats that nobody watches: what the lab's tests see is whether policies hold.
func discard(heartbeats <-chan *healthcheck.ControllerHeartbeat) {
	for range heartbeats {
	}
}
