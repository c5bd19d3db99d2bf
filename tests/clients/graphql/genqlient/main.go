// Orders through the client of genqlient, and prints what happens as JSON:
// main GRAPHQL_URL USER PLENTY SCARCE (two product ids; there is one unit of SCARCE)
package main

//go:generate go tool genqlient

import (
	"context"
	"encoding/json"
	"errors"
	"log"
	"net/http"
	"os"
	"time"

	"github.com/Khan/genqlient/graphql"
	"github.com/google/uuid"
	"github.com/vektah/gqlparser/v2/gqlerror"

	"market/tests/clients/graphql/market"
)

func must[T any](value T, err error) T {
	if err != nil {
		log.Fatal(err)
	}
	return value
}

func main() {
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	client := graphql.NewClient(os.Args[1], http.DefaultClient)
	user, plenty, scarce := os.Args[2], os.Args[3], os.Args[4]

	place := func(customer, product string, quantity int, email *string) (*market.PlaceOrderResponse, error) {
		key := uuid.NewString()
		return market.PlaceOrder(ctx, client, market.CreateOrderInput{
			User: &customer, Email: email, Items: []market.OrderItemInput{{ProductId: product, Quantity: quantity}},
		}, &key)
	}
	refused := func(_ *market.PlaceOrderResponse, err error) map[string]any {
		var list gqlerror.List
		if !errors.As(err, &list) {
			log.Fatal("not refused with errors of GraphQL: ", err)
		}
		return list[0].Extensions
	}

	shown := [][]string{}
	for _, product := range must(market.FindProducts(ctx, client, []string{scarce, plenty})).Products.Items {
		shown = append(shown, []string{product.Name, product.Price})
	}
	placed := []string{}
	for range 3 {
		placed = append(placed, must(place(user, plenty, 2, nil)).CreateOrder.Id)
	}
	read := must(market.ReadOrder(ctx, client, placed[0])).Order
	first := must(market.ListOrders(ctx, client, user, nil)).Orders
	second := must(market.ListOrders(ctx, client, user, first.Next)).Orders
	listed := len(first.Items)+len(second.Items) == len(placed)
	for i, order := range append(first.Items, second.Items...) {
		listed = listed && order.Id == placed[len(placed)-1-i]
	}
	cancelled := must(market.CancelOrder(ctx, client, placed[0])).DeleteOrder

	nobody := "nobody"
	conflict := refused(place(user, scarce, 5, nil))
	shortages := []any{}
	for _, shortage := range conflict["shortages"].([]any) {
		shortages = append(shortages, []any{shortage.(map[string]any)["wanted"], shortage.(map[string]any)["left"]})
	}
	invalid := refused(place(" ", plenty, 1, &nobody))
	fields := []any{}
	for _, e := range invalid["errors"].([]any) {
		fields = append(fields, e.(map[string]any)["field"])
	}

	json.NewEncoder(os.Stdout).Encode(map[string]any{
		"products":  shown,
		"placed":    []any{read.Status, read.Total, read.Items[0].Quantity},
		"listed":    listed,
		"pages":     []any{len(first.Items), len(second.Items), second.Next},
		"cancelled": cancelled.Status,
		"conflict":  []any{conflict["code"], shortages},
		"invalid":   []any{invalid["code"], fields},
	})
}
