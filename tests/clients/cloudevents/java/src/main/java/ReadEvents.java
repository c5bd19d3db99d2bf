import com.fasterxml.jackson.databind.ObjectMapper;
import com.fasterxml.jackson.databind.node.ObjectNode;
import io.cloudevents.CloudEvent;
import io.cloudevents.kafka.CloudEventDeserializer;
import java.time.Duration;
import java.util.List;
import java.util.Map;
import org.apache.kafka.clients.consumer.ConsumerRecord;
import org.apache.kafka.clients.consumer.KafkaConsumer;
import org.apache.kafka.common.serialization.StringDeserializer;

/** Prints the event of one order as the CloudEvents SDK for Java reads it: ReadEvents BROKERS TOPIC ORDER_ID */
public final class ReadEvents {
    public static void main(String[] args) throws Exception {
        Map<String, Object> settings = Map.of(
            "bootstrap.servers", args[0], "group.id", "java-" + args[2], "auto.offset.reset", "earliest");
        ObjectMapper json = new ObjectMapper();
        long end = System.nanoTime() + Duration.ofSeconds(60).toNanos();
        try (KafkaConsumer<String, CloudEvent> consumer =
                new KafkaConsumer<>(settings, new StringDeserializer(), new CloudEventDeserializer())) {
            consumer.subscribe(List.of(args[1]));
            while (System.nanoTime() < end) {
                for (ConsumerRecord<String, CloudEvent> record : consumer.poll(Duration.ofMillis(500))) {
                    CloudEvent event = record.value();
                    if (!args[2].equals(event.getSubject())) {
                        continue;
                    }
                    ObjectNode shown = json.createObjectNode();
                    shown.put("id", event.getId()).put("source", event.getSource().toString());
                    shown.put("type", event.getType()).put("subject", event.getSubject());
                    shown.set("sequence", json.valueToTree(event.getExtension("sequence")));
                    shown.put("time", event.getTime().toInstant().toString());
                    shown.set("data", json.readTree(event.getData().toBytes()));
                    System.out.println(json.writeValueAsString(shown));
                    return;
                }
            }
        }
        throw new IllegalStateException("no event of this order within 60 seconds");
    }
}
