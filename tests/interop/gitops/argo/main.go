// Syncs a manifest as Argo CD's application controller does: by its own engine, with pruning.
//
//	argo-sync MANIFEST NAMESPACE TIMES client-side|server-side [APPLICATION]
//
// Of an Application, `ignoreDifferences` and the sync option `RespectIgnoreDifferences` are followed: Argo CD's own
// normalizer says which fields are ignored.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"strconv"
	"time"

	"github.com/argoproj/argo-cd/v3/pkg/apis/application/v1alpha1"
	"github.com/argoproj/argo-cd/v3/util/argo/diff"
	"github.com/argoproj/argo-cd/v3/util/argo/normalizers"
	"github.com/argoproj/gitops-engine/pkg/cache"
	"github.com/argoproj/gitops-engine/pkg/engine"
	"github.com/argoproj/gitops-engine/pkg/sync"
	"github.com/argoproj/gitops-engine/pkg/sync/common"
	"github.com/argoproj/gitops-engine/pkg/utils/kube"
	"github.com/go-logr/logr"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/strategicpatch"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/yaml"
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

// The Application, or an empty one where none is named.
func application(path string) (*v1alpha1.Application, error) {
	app := &v1alpha1.Application{}
	if path == "" {
		return app, nil
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	return app, yaml.UnmarshalStrict(text, app)
}

// What is applied in place of an object of Git, where the ignored fields of the one in the cluster are respected: the object
// of Git with what the one in the cluster has in them. The normalizer takes these fields out of both.
func respect(app *v1alpha1.Application, object, live *unstructured.Unstructured) (*unstructured.Unstructured, error) {
	config, err := diff.NewDiffConfigBuilder().
		WithDiffSettings(app.Spec.IgnoreDifferences, map[string]v1alpha1.ResourceOverride{}, false, normalizers.IgnoreNormalizerOpts{}).
		WithTracking("", "annotation").
		WithNoCache().
		Build()
	if err != nil {
		return nil, err
	}
	without, err := diff.Normalize([]*unstructured.Unstructured{live}, []*unstructured.Unstructured{object}, config)
	if err != nil {
		return nil, err
	}
	typed, err := scheme.Scheme.New(object.GroupVersionKind())
	if err != nil {
		return nil, err
	}
	texts := [3][]byte{}
	for at, it := range []*unstructured.Unstructured{without.Lives[0], live, without.Targets[0]} {
		if texts[at], err = it.MarshalJSON(); err != nil {
			return nil, err
		}
	}
	ignored, err := strategicpatch.CreateTwoWayMergePatch(texts[0], texts[1], typed)
	if err != nil {
		return nil, err
	}
	text, err := strategicpatch.StrategicMergePatch(texts[2], ignored, typed)
	if err != nil {
		return nil, err
	}
	applied := &unstructured.Unstructured{}
	return applied, json.Unmarshal(text, &applied.Object)
}

func run(manifest, namespace, times, how, appPath string) error {
	count, err := strconv.Atoi(times)
	if err != nil {
		return err
	}
	app, err := application(appPath)
	if err != nil {
		return err
	}
	respects := app.Spec.SyncPolicy != nil && app.Spec.SyncPolicy.SyncOptions.HasOption("RespectIgnoreDifferences=true")
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
		if respects {
			lives, err := live.GetManagedLiveObjs(objects, ours)
			if err != nil {
				return err
			}
			for at, object := range objects {
				if there := lives[kube.GetResourceKey(object)]; there != nil {
					if objects[at], err = respect(app, object, there); err != nil {
						return err
					}
				}
			}
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
	if len(os.Args) < 5 || len(os.Args) > 6 {
		fmt.Fprintln(os.Stderr, "usage: argo-sync MANIFEST NAMESPACE TIMES client-side|server-side [APPLICATION]")
		os.Exit(2)
	}
	app := ""
	if len(os.Args) == 6 {
		app = os.Args[5]
	}
	if err := run(os.Args[1], os.Args[2], os.Args[3], os.Args[4], app); err != nil {
		fmt.Fprintln(os.Stderr, "argo-sync:", err)
		os.Exit(1)
	}
}
