// Calls inventory with generated code, and prints what it returns as JSON: main HOST:PORT PRODUCT_ID
package main

import (
	"context"
	"encoding/json"
	"log"
	"os"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"market/tests/clients/grpc/inventory"
)

func main() {
	channel, err := grpc.NewClient(os.Args[1], grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		log.Fatal(err)
	}
	client := inventory.NewInventoryClient(channel)
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	found, err := client.CheckAvaliable(ctx, &inventory.CheckAvaliableRequest{ProductIds: []string{os.Args[2]}})
	if err != nil {
		log.Fatal(err)
	}
	_, err = client.CheckAvaliable(ctx, &inventory.CheckAvaliableRequest{ProductIds: []string{"x"}})
	refused := status.Convert(err)
	fields := []string{}
	for _, detail := range refused.Details() {
		if bad, ok := detail.(*errdetails.BadRequest); ok {
			for _, violation := range bad.FieldViolations {
				fields = append(fields, violation.Field+" "+violation.Description)
			}
		}
	}
	json.NewEncoder(os.Stdout).Encode(map[string]any{
		"available": found.Items[0].Available, "quantity": found.Items[0].Quantity,
		"code": refused.Code(), "message": refused.Message(), "fields": fields,
	})
}
