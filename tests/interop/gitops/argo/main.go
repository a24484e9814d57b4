// Syncs a manifest as Argo CD's application controller does: by its own engine, with pruning.
//
//	argo-sync MANIFEST NAMESPACE TIMES client-side|server-side
package main

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"time"

	"github.com/argoproj/gitops-engine/pkg/cache"
	"github.com/argoproj/gitops-engine/pkg/engine"
	"github.com/argoproj/gitops-engine/pkg/sync"
	"github.com/argoproj/gitops-engine/pkg/sync/common"
	"github.com/argoproj/gitops-engine/pkg/utils/kube"
	"github.com/go-logr/logr"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/client-go/tools/clientcmd"
)

// By which Argo CD knows its objects again.
const tracking = "argocd.argoproj.io/tracking-id"

func id(key kube.ResourceKey) string {
	return fmt.Sprintf("shop:%s/%s:%s/%s", key.Group, key.Kind, key.Namespace, key.Name)
}

// The objects that Git has, marked as Argo CD's.
func read(manifest string) ([]*unstructured.Unstructured, error) {
	text, err := os.ReadFile(manifest)
	if err != nil {
		return nil, err
	}
	objects, err := kube.SplitYAML(text)
	if err != nil {
		return nil, err
	}
	for _, object := range objects {
		annotations := object.GetAnnotations()
		if annotations == nil {
			annotations = map[string]string{}
		}
		annotations[tracking] = id(kube.GetResourceKey(object))
		object.SetAnnotations(annotations)
	}
	return objects, nil
}

func run(manifest, namespace, times, how string) error {
	count, err := strconv.Atoi(times)
	if err != nil {
		return err
	}
	config, err := clientcmd.BuildConfigFromFlags("", os.Getenv("KUBECONFIG"))
	if err != nil {
		return err
	}
	live := cache.NewClusterCache(config,
		cache.SetNamespaces([]string{namespace}),
		cache.SetLogr(logr.Discard()),
		cache.SetPopulateResourceInfoHandler(func(object *unstructured.Unstructured, _ bool) (any, bool) {
			mark := object.GetAnnotations()[tracking]
			return mark, mark != ""
		}),
	)
	argo := engine.NewEngine(config, live, engine.WithLogr(logr.Discard()))
	stop, err := argo.Run()
	if err != nil {
		return err
	}
	defer stop()
	ours := func(resource *cache.Resource) bool {
		mark, _ := resource.Info.(string)
		return mark == id(resource.ResourceKey())
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	for number := range count {
		objects, err := read(manifest)
		if err != nil {
			return err
		}
		results, err := argo.Sync(ctx, objects, ours, strconv.Itoa(number), namespace,
			// Neither a dry run nor by force, with pruning and hooks; validated.
			sync.WithOperationSettings(false, true, false, false),
			sync.WithManifestValidation(true),
			sync.WithServerSideApply(how == "server-side"),
			sync.WithServerSideApplyManager("argocd-controller"),
			sync.WithLogr(logr.Discard()),
		)
		if err != nil {
			return err
		}
		if len(results) != len(objects) {
			return fmt.Errorf("%d of %d objects were synced", len(results), len(objects))
		}
		for _, result := range results {
			fmt.Println(result.ResourceKey.String(), result.Status, result.Message)
			if result.Status != common.ResultCodeSynced {
				return fmt.Errorf("%s: %s: %s", result.ResourceKey.String(), result.Status, result.Message)
			}
		}
	}
	return nil
}

func main() {
	if len(os.Args) != 5 {
		fmt.Fprintln(os.Stderr, "usage: argo-sync MANIFEST NAMESPACE TIMES client-side|server-side")
		os.Exit(2)
	}
	if err := run(os.Args[1], os.Args[2], os.Args[3], os.Args[4]); err != nil {
		fmt.Fprintln(os.Stderr, "argo-sync:", err)
		os.Exit(1)
	}
}
