import com.google.protobuf.Any;
import com.google.rpc.BadRequest;
import com.google.rpc.Status;
import io.grpc.ManagedChannel;
import io.grpc.ManagedChannelBuilder;
import io.grpc.StatusRuntimeException;
import io.grpc.protobuf.StatusProto;
import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.TimeUnit;
import market.inventory.v1.InventoryGrpc;
import market.inventory.v1.InventoryOuterClass.Availability;
import market.inventory.v1.InventoryOuterClass.CheckAvaliableRequest;

/** Calls inventory with generated code, and prints what it returns as JSON: CallInventory HOST:PORT PRODUCT_ID */
public final class CallInventory {
    public static void main(String[] args) throws Exception {
        ManagedChannel channel = ManagedChannelBuilder.forTarget(args[0]).usePlaintext().build();
        var client = InventoryGrpc.newBlockingStub(channel).withDeadlineAfter(30, TimeUnit.SECONDS);
        Availability found = client.checkAvaliable(
            CheckAvaliableRequest.newBuilder().addProductIds(args[1]).build()).getItems(0);
        List<String> fields = new ArrayList<>();
        String refusal;
        try {
            client.checkAvaliable(CheckAvaliableRequest.newBuilder().addProductIds("x").build());
            throw new IllegalStateException("was accepted");
        } catch (StatusRuntimeException e) {
            Status status = StatusProto.fromThrowable(e);
            for (Any detail : status.getDetailsList()) {
                if (detail.is(BadRequest.class)) {
                    detail.unpack(BadRequest.class).getFieldViolationsList()
                        .forEach(v -> fields.add('"' + v.getField() + ' ' + v.getDescription() + '"'));
                }
            }
            refusal = "\"code\": " + status.getCode() + ", \"message\": \"" + status.getMessage() + '"';
        }
        System.out.println("{\"available\": " + found.getAvailable() + ", \"quantity\": " + found.getQuantity()
            + ", " + refusal + ", \"fields\": " + fields + "}");
        channel.shutdownNow();
    }
}
