// Prints the event of one order as the CloudEvents SDK for Go reads it: main BROKERS TOPIC ORDER_ID
package main

import (
	"context"
	"encoding/json"
	"log"
	"os"
	"strings"
	"time"

	"github.com/IBM/sarama"
	"github.com/cloudevents/sdk-go/protocol/kafka_sarama/v2"
	cloudevents "github.com/cloudevents/sdk-go/v2"
)

func main() {
	brokers, topic, orderID := strings.Split(os.Args[1], ","), os.Args[2], os.Args[3]
	config := sarama.NewConfig()
	config.Version = sarama.V2_8_0_0
	config.Consumer.Offsets.Initial = sarama.OffsetOldest
	consumer, err := kafka_sarama.NewConsumer(brokers, config, "go-"+orderID, topic)
	if err != nil {
		log.Fatal(err)
	}
	client, err := cloudevents.NewClient(consumer)
	if err != nil {
		log.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	found := make(chan cloudevents.Event, 1)
	go func() {
		err := client.StartReceiver(ctx, func(event cloudevents.Event) {
			if event.Subject() == orderID {
				select {
				case found <- event:
				default:
				}
			}
		})
		if err != nil {
			log.Fatal(err)
		}
	}()
	select {
	case event := <-found:
		if err := event.Validate(); err != nil {
			log.Fatal(err)
		}
		var data map[string]any
		if err := event.DataAs(&data); err != nil {
			log.Fatal(err)
		}
		json.NewEncoder(os.Stdout).Encode(map[string]any{
			"id": event.ID(), "source": event.Source(), "type": event.Type(), "subject": event.Subject(),
			"sequence": event.Extensions()["sequence"], "time": event.Time().UTC().Format("2006-01-02T15:04:05.000Z"),
			"data": data,
		})
		os.Exit(0)
	case <-ctx.Done():
		log.Fatal("no event of this order within 60 seconds")
	}
}
