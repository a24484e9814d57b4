// Makes a key for an external account binding in the database of a step-ca that does not run, by step-ca's own code, and
// prints its identifier and its secret: step-ca has no other way to them outside of its commercial edition.
package main

import (
	"context"
	"encoding/base64"
	"fmt"
	"os"

	acme "github.com/smallstep/certificates/acme/db/nosql"
	"github.com/smallstep/certificates/authority/admin"
	provisioners "github.com/smallstep/certificates/authority/admin/db/nosql"
	"github.com/smallstep/nosql"
)

func run(source, provisioner string) error {
	ctx := context.Background()
	database, err := nosql.New(nosql.BadgerV2Driver, source)
	if err != nil {
		return err
	}
	defer database.Close()
	known, err := provisioners.New(database, admin.DefaultAuthorityID)
	if err != nil {
		return err
	}
	all, err := known.GetProvisioners(ctx)
	if err != nil {
		return err
	}
	keys, err := acme.New(database)
	if err != nil {
		return err
	}
	for _, it := range all {
		if it.Name != provisioner {
			continue
		}
		key, err := keys.CreateExternalAccountKey(ctx, it.Id, "bench")
		if err != nil {
			return err
		}
		fmt.Println(key.ID, base64.RawURLEncoding.EncodeToString(key.HmacKey))
		return nil
	}
	return fmt.Errorf("no provisioner %s", provisioner)
}

func main() {
	if len(os.Args) != 3 {
		fmt.Fprintln(os.Stderr, "usage: eab DATABASE PROVISIONER")
		os.Exit(2)
	}
	if err := run(os.Args[1], os.Args[2]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
