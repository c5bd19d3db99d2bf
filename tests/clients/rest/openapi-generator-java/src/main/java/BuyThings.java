import com.fasterxml.jackson.databind.ObjectMapper;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Collections;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.UUID;
import market.orders.ApiClient;
import market.orders.ApiException;
import market.orders.api.DefaultApi;
import market.orders.model.CreateOrder;
import market.orders.model.NewLine;
import market.orders.model.Order;
import market.orders.model.Page;
import market.orders.model.Problem;

/**
 * Orders through clients of openapi-generator, and prints what happens as JSON:
 * BuyThings ORDERS_URL PRODUCTS_URL USER PLENTY SCARCE (two product ids; there is one unit of SCARCE)
 */
public final class BuyThings {
    private static final ObjectMapper JSON = ApiClient.createDefaultObjectMapper();
    private static DefaultApi orders;

    public static void main(String[] args) throws Exception {
        ApiClient client = new ApiClient();
        client.updateBaseUri(args[0]);
        orders = new DefaultApi(client);
        market.products.ApiClient catalogue = new market.products.ApiClient();
        catalogue.updateBaseUri(args[1]);
        String user = args[2];
        UUID plenty = UUID.fromString(args[3]);
        UUID scarce = UUID.fromString(args[4]);

        List<List<String>> products = new ArrayList<>();
        new market.products.api.DefaultApi(catalogue)
            .listProducts(null, null, null, null, List.of(scarce, plenty), null, null, null)
            .getItems().forEach(product -> products.add(List.of(product.getName(), product.getPrice())));
        List<UUID> placed = new ArrayList<>();
        for (int i = 0; i < 3; i++) {
            placed.add(place(user, plenty, 2, null).getId());
        }
        Order read = orders.getOrder(placed.get(0));
        Page first = orders.listOrders(user, 2, null, null, "confirmed", null, null);
        Page second = orders.listOrders(user, 2, null, first.getNext(), "confirmed", null, null);
        List<UUID> listed = new ArrayList<>();
        first.getItems().forEach(order -> listed.add(order.getId()));
        second.getItems().forEach(order -> listed.add(order.getId()));
        Collections.reverse(placed);
        int status = orders.cancelOrderWithHttpInfo(read.getId()).getStatusCode();
        Order cancelled = orders.getOrder(read.getId());
        Problem conflict = refused(user, scarce, 5, null);
        Problem invalid = refused(" ", plenty, 1, "nobody");

        Map<String, Object> shown = new LinkedHashMap<>();
        shown.put("products", products);
        shown.put("placed", List.of(read.getStatus(), read.getTotal(), read.getItems().get(0).getQuantity()));
        shown.put("listed", listed.equals(placed));
        shown.put("pages", Arrays.asList(first.getItems().size(), second.getItems().size(), second.getNext()));
        shown.put("cancelled", List.of(status, cancelled.getStatus()));
        shown.put("conflict", List.of(
            conflict.getStatus(),
            conflict.getShortages().stream().map(s -> List.of(s.getWanted(), s.getLeft())).toList()));
        shown.put("invalid", List.of(
            invalid.getStatus(), invalid.getErrors().stream().map(error -> error.getField()).toList()));
        System.out.println(JSON.writeValueAsString(shown));
    }

    private static Order place(String user, UUID product, int quantity, String email) throws ApiException {
        CreateOrder body = new CreateOrder().user(user).addItemsItem(new NewLine().productId(product).quantity(quantity));
        if (email != null) {
            body.email(email);
        }
        return orders.createOrder(body, UUID.randomUUID().toString());
    }

    /** Returns the problem document, which the client leaves in the exception as text. */
    private static Problem refused(String user, UUID product, int quantity, String email) throws Exception {
        try {
            place(user, product, quantity, email);
        } catch (ApiException e) {
            return JSON.readValue(e.getResponseBody(), Problem.class);
        }
        throw new IllegalStateException("was accepted");
    }
}
