// What a tool that caches is at its heart, to compare with (`make bench BENCH=cached`): client-go's informers hold every
// Secret and every workload, and when the data of a Secret changes, the pod template of each workload that names it is
// patched at once. Nothing is checked, recorded or waited for, and requests are not throttled.
//
//	cached -kubeconfig FILE -address HOST:PORT
//
// GET /readyz answers 200 once all of them are cached.
package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"flag"
	"log"
	"maps"
	"net/http"
	"reflect"
	"slices"
	"sync/atomic"

	apps "k8s.io/api/apps/v1"
	core "k8s.io/api/core/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/util/workqueue"
)

const (
	// The index of workloads by the Secrets that they name.
	bySecret = "secret"
	// Secrets that are worked on at a time: as many as the benchmark changes at a time.
	workers = 24
	// On the pod template; its value is a digest of the Secret's data.
	annotation = "cached.example/secret"
)

// A kind of workload.
type kind struct {
	informer cache.SharedIndexInformer
	template func(any) *core.PodTemplateSpec
	patch    func(ctx context.Context, namespace, name string, body []byte) error
}

func main() {
	kubeconfig := flag.String("kubeconfig", "", "how the API server is reached")
	address := flag.String("address", "", "where /readyz is answered")
	flag.Parse()
	config, err := clientcmd.BuildConfigFromFlags("", *kubeconfig)
	if err != nil {
		log.Fatal(err)
	}
	// No limit; the default is 5 requests a second.
	config.QPS = -1
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		log.Fatal(err)
	}
	ctx := context.Background()
	factory := informers.NewSharedInformerFactory(client, 0)
	secrets := factory.Core().V1().Secrets().Informer()
	kinds := kindsOf(client, factory)
	for _, kind := range kinds {
		index := func(object any) ([]string, error) {
			namespace := object.(meta.Object).GetNamespace()
			return named(namespace, &kind.template(object).Spec), nil
		}
		if err := kind.informer.AddIndexers(cache.Indexers{bySecret: index}); err != nil {
			log.Fatal(err)
		}
	}
	queue := workqueue.NewTypedRateLimitingQueue(workqueue.DefaultTypedControllerRateLimiter[string]())
	handler := cache.ResourceEventHandlerFuncs{UpdateFunc: func(old, new any) {
		if before, after := old.(*core.Secret), new.(*core.Secret); !reflect.DeepEqual(before.Data, after.Data) {
			queue.Add(after.Namespace + "/" + after.Name)
		}
	}}
	if _, err := secrets.AddEventHandler(handler); err != nil {
		log.Fatal(err)
	}

	var ready atomic.Bool
	http.HandleFunc("GET /readyz", func(answer http.ResponseWriter, _ *http.Request) {
		if !ready.Load() {
			http.Error(answer, "the caches are being filled", http.StatusServiceUnavailable)
		}
	})
	go func() { log.Fatal(http.ListenAndServe(*address, nil)) }()
	factory.Start(ctx.Done())
	factory.WaitForCacheSync(ctx.Done())
	ready.Store(true)

	for range workers {
		go func() {
			for {
				key, _ := queue.Get()
				if err := follow(ctx, secrets, kinds, key); err != nil {
					log.Printf("%s: %v", key, err)
					queue.AddRateLimited(key)
				} else {
					queue.Forget(key)
				}
				queue.Done(key)
			}
		}()
	}
	select {}
}

// Patches all workloads that name a Secret.
func follow(ctx context.Context, secrets cache.SharedIndexInformer, kinds []kind, key string) error {
	object, exists, err := secrets.GetStore().GetByKey(key)
	if err != nil || !exists {
		return err
	}
	value := digest(object.(*core.Secret).Data)
	template := map[string]any{"metadata": map[string]any{"annotations": map[string]string{annotation: value}}}
	body, err := json.Marshal(map[string]any{"spec": map[string]any{"template": template}})
	if err != nil {
		return err
	}
	for _, kind := range kinds {
		users, err := kind.informer.GetIndexer().ByIndex(bySecret, key)
		if err != nil {
			return err
		}
		for _, user := range users {
			if kind.template(user).Annotations[annotation] == value {
				continue
			}
			user := user.(meta.Object)
			if err := kind.patch(ctx, user.GetNamespace(), user.GetName(), body); err != nil {
				return err
			}
		}
	}
	return nil
}

func kindsOf(client kubernetes.Interface, factory informers.SharedInformerFactory) []kind {
	all, api := factory.Apps().V1(), client.AppsV1()
	const merge = types.StrategicMergePatchType
	return []kind{
		{
			all.Deployments().Informer(),
			func(it any) *core.PodTemplateSpec { return &it.(*apps.Deployment).Spec.Template },
			func(ctx context.Context, namespace, name string, body []byte) error {
				_, err := api.Deployments(namespace).Patch(ctx, name, merge, body, meta.PatchOptions{})
				return err
			},
		},
		{
			all.StatefulSets().Informer(),
			func(it any) *core.PodTemplateSpec { return &it.(*apps.StatefulSet).Spec.Template },
			func(ctx context.Context, namespace, name string, body []byte) error {
				_, err := api.StatefulSets(namespace).Patch(ctx, name, merge, body, meta.PatchOptions{})
				return err
			},
		},
		{
			all.DaemonSets().Informer(),
			func(it any) *core.PodTemplateSpec { return &it.(*apps.DaemonSet).Spec.Template },
			func(ctx context.Context, namespace, name string, body []byte) error {
				_, err := api.DaemonSets(namespace).Patch(ctx, name, merge, body, meta.PatchOptions{})
				return err
			},
		},
	}
}

// The Secrets that pods name, as keys of the cache.
func named(namespace string, pod *core.PodSpec) []string {
	found := map[string]bool{}
	for _, volume := range pod.Volumes {
		if volume.Secret != nil {
			found[volume.Secret.SecretName] = true
		}
		if volume.Projected != nil {
			for _, source := range volume.Projected.Sources {
				if source.Secret != nil {
					found[source.Secret.Name] = true
				}
			}
		}
	}
	for _, container := range slices.Concat(pod.InitContainers, pod.Containers) {
		for _, variable := range container.Env {
			if variable.ValueFrom != nil && variable.ValueFrom.SecretKeyRef != nil {
				found[variable.ValueFrom.SecretKeyRef.Name] = true
			}
		}
		for _, all := range container.EnvFrom {
			if all.SecretRef != nil {
				found[all.SecretRef.Name] = true
			}
		}
	}
	var keys []string
	for name := range found {
		keys = append(keys, namespace+"/"+name)
	}
	return keys
}

func digest(data map[string][]byte) string {
	hash := sha256.New()
	for _, key := range slices.Sorted(maps.Keys(data)) {
		hash.Write([]byte(key))
		hash.Write(data[key])
	}
	return hex.EncodeToString(hash.Sum(nil))
}
