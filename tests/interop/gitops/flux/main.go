// Applies a manifest as Flux's kustomize-controller does: by its own engine, with the options that it passes.
//
//	flux-sync MANIFEST TIMES
package main

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"time"

	"github.com/fluxcd/pkg/ssa"
	"github.com/fluxcd/pkg/ssa/normalize"
	"github.com/fluxcd/pkg/ssa/utils"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

const (
	controller = "kustomize-controller"
	group      = "kustomize.toolkit.fluxcd.io"
)

// What a Kustomization without settings of its own leads to.
func options() ssa.ApplyOptions {
	options := ssa.DefaultApplyOptions()
	annotation := group + "/ssa"
	options.ExclusionSelector = map[string]string{group + "/reconcile": "disabled", annotation: "Ignore"}
	options.IfNotPresentSelector = map[string]string{annotation: "IfNotPresent"}
	options.ForceSelector = map[string]string{group + "/force": "enabled"}
	update, apply := metav1.ManagedFieldsOperationUpdate, metav1.ManagedFieldsOperationApply
	options.Cleanup = ssa.ApplyCleanupOptions{
		// What people have written by kubectl is undone.
		Annotations: []string{"kubectl.kubernetes.io/last-applied-configuration"},
		FieldManagers: []ssa.FieldManager{
			{Name: "kubectl", OperationType: apply},
			{Name: "kubectl", OperationType: update},
			{Name: "before-first-apply", OperationType: update},
			{Name: controller, OperationType: update},
		},
		Exclusions: map[string]string{annotation: "Merge"},
	}
	return options
}

func run(manifest, times string) error {
	count, err := strconv.Atoi(times)
	if err != nil {
		return err
	}
	config, err := clientcmd.BuildConfigFromFlags("", os.Getenv("KUBECONFIG"))
	if err != nil {
		return err
	}
	cluster, err := client.New(config, client.Options{})
	if err != nil {
		return err
	}
	manager := ssa.NewResourceManager(cluster, nil, ssa.Owner{Field: controller, Group: group})
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	for range count {
		file, err := os.Open(manifest)
		if err != nil {
			return err
		}
		objects, err := utils.ReadObjects(file)
		file.Close()
		if err != nil {
			return err
		}
		if err := normalize.UnstructuredList(objects); err != nil {
			return err
		}
		manager.SetOwnerLabels(objects, "shop", "flux-system")
		changed, err := manager.ApplyAllStaged(ctx, objects, options())
		if err != nil {
			return err
		}
		fmt.Println(changed)
	}
	return nil
}

func main() {
	if len(os.Args) != 3 {
		fmt.Fprintln(os.Stderr, "usage: flux-sync MANIFEST TIMES")
		os.Exit(2)
	}
	if err := run(os.Args[1], os.Args[2]); err != nil {
		fmt.Fprintln(os.Stderr, "flux-sync:", err)
		os.Exit(1)
	}
}
