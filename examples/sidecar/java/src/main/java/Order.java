import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
import java.io.File;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.sql.Connection;
import java.sql.DriverManager;
import java.sql.Statement;

/** One order over two databases, with plain JDBC. Its argument is the file that `undoubt dev -o json` has printed. */
public final class Order {
    private static final ObjectMapper JSON = new ObjectMapper();
    /** The sidecar speaks HTTP/1.1. Asked to change to HTTP/2, which is this client's default, it would not read the body. */
    private static final HttpClient HTTP =
            HttpClient.newBuilder().version(HttpClient.Version.HTTP_1_1).build();
    private final JsonNode dev;

    private Order(JsonNode dev) {
        this.dev = dev;
    }

    public static void main(String[] arguments) throws Exception {
        System.out.println(new Order(JSON.readTree(new File(arguments[0]))).place("a lamp", 15));
    }

    private String place(String item, int price) throws Exception {
        String tx = "/v1/transactions/" + ask("/v1/transactions", "{\"timeout_ms\": 30000}").get("id").asText();
        try {
            branch(tx, "orders", "insert into orders (item) values (?)", item);
            branch(tx, "payments", "update accounts set balance = balance - ? where name = 'ada'", price);
        } catch (Exception error) {
            ask(tx + "/rollback", "{}");
            throw error;
        }
        return ask(tx + "/commit", "{}").get("outcome").asText();
    }

    /** One branch, in a session of its own. Closing a session rolls back what is not prepared. */
    private void branch(String tx, String participant, String sql, Object value) throws Exception {
        JsonNode branch = ask(tx + "/branches", "{\"participant\": \"" + participant + "\"}");
        try (Connection session = connect(dev.get("participants").get(participant).asText());
                Statement own = session.createStatement()) {
            for (JsonNode statement : branch.get("begin_statements")) {
                own.execute(statement.asText());
            }
            try (var work = session.prepareStatement(sql)) {
                work.setObject(1, value);
                work.executeUpdate();
            }
            for (JsonNode statement : branch.get("prepare_statements")) {
                own.execute(statement.asText());
            }
        }
    }

    /** Autocommit stays on: the transaction begins and ends by the statements that the sidecar gives. */
    private static Connection connect(String dsn) throws Exception {
        URI at = URI.create(dsn);
        String[] user = at.getUserInfo().split(":", 2);
        String url = "jdbc:postgresql://" + at.getHost() + ":" + at.getPort() + at.getPath();
        return DriverManager.getConnection(url, user[0], user[1]);
    }

    private JsonNode ask(String path, String body) throws Exception {
        HttpRequest request = HttpRequest.newBuilder(URI.create(dev.get("sidecar").asText() + path))
                .header("Authorization", "Bearer " + dev.get("token").asText())
                .header("Content-Type", "application/json")
                .POST(HttpRequest.BodyPublishers.ofString(body))
                .build();
        HttpResponse<String> answer = HTTP.send(request, HttpResponse.BodyHandlers.ofString());
        if (answer.statusCode() >= 300) {
            throw new IllegalStateException(answer.body());
        }
        return JSON.readTree(answer.body());
    }
}
