import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
import java.io.ByteArrayOutputStream;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.nio.ByteBuffer;
import java.nio.charset.StandardCharsets;
import java.nio.file.Path;
import java.time.Instant;
import java.time.temporal.ChronoUnit;
import java.util.Map;
import java.util.UUID;
import org.apache.avro.Schema;
import org.apache.avro.SchemaNormalization;
import org.apache.avro.generic.GenericData;
import org.apache.avro.generic.GenericDatumWriter;
import org.apache.avro.io.EncoderFactory;
import org.apache.kafka.clients.producer.KafkaProducer;
import org.apache.kafka.clients.producer.ProducerRecord;
import org.apache.kafka.common.serialization.ByteArraySerializer;

/** Send an opt-out: java OptOut BROKERS REGISTRY NAMESPACE ConsentChanged.avsc MEMBER PURPOSE. */
public final class OptOut {
    private static final HttpClient HTTP = HttpClient.newHttpClient();

    public static void main(String[] arguments) throws Exception {
        String topic = arguments[2] + ".member-events";
        Schema schema = new Schema.Parser().parse(Path.of(arguments[3]).toFile());
        int schemaId = idOf(schema, arguments[1], topic + "-" + schema.getFullName());
        byte[] value = framed(schemaId, schema, optOut(schema, arguments[4], arguments[5]));
        // The default partitioner is murmur2 of the key, which every producer must use; acks=all and idempotence are defaults too.
        Map<String, Object> settings = Map.of("bootstrap.servers", arguments[0]);
        try (var producer = new KafkaProducer<>(settings, new ByteArraySerializer(), new ByteArraySerializer())) {
            byte[] key = arguments[4].getBytes(StandardCharsets.US_ASCII);
            var accepted = producer.send(new ProducerRecord<>(topic, key, value)).get();
            System.out.println("accepted: partition " + accepted.partition() + " offset " + accepted.offset());
        }
    }

    private static GenericData.Record optOut(Schema schema, String member, String purpose) {
        UUID id = UUID.randomUUID();
        ByteBuffer identity = ByteBuffer.allocate(16).putLong(id.getMostSignificantBits()).putLong(id.getLeastSignificantBits());
        long now = ChronoUnit.MICROS.between(Instant.EPOCH, Instant.now());
        GenericData.Record event = new GenericData.Record(schema);
        event.put("event_id", new GenericData.Fixed(schema.getField("event_id").schema(), identity.array()));
        event.put("choice", new GenericData.EnumSymbol(schema.getField("choice").schema(), "OPT_OUT"));
        event.put("legal_basis", new GenericData.EnumSymbol(schema.getField("legal_basis").schema(), "CONSENT"));
        event.put("effective_at", now);
        event.put("recorded_at", now);
        event.put("purpose", purpose);
        event.put("notice_version", "");
        event.put("source", "java-settings");
        event.put("member_id", member);
        return event;
    }

    /** The magic byte 0, the schema id, and the Avro bytes. */
    private static byte[] framed(int schemaId, Schema schema, GenericData.Record event) throws Exception {
        ByteArrayOutputStream bytes = new ByteArrayOutputStream();
        bytes.write(ByteBuffer.allocate(5).put((byte) 0).putInt(schemaId).array());
        var encoder = EncoderFactory.get().binaryEncoder(bytes, null);
        new GenericDatumWriter<GenericData.Record>(schema).write(event, encoder);
        encoder.flush();
        return bytes.toByteArray();
    }

    /** The id of exactly this schema. This program registers nothing. */
    private static int idOf(Schema schema, String registry, String subject) throws Exception {
        long wanted = SchemaNormalization.parsingFingerprint64(schema);
        String versions = registry + "/subjects/" + subject + "/versions";
        for (JsonNode version : get(versions)) {
            JsonNode found = get(versions + "/" + version.asInt());
            Schema candidate = new Schema.Parser().parse(found.get("schema").asText());
            if (SchemaNormalization.parsingFingerprint64(candidate) == wanted) {
                return found.get("id").asInt();
            }
        }
        throw new IllegalStateException(subject + " is not registered: run `consentry schemas register`");
    }

    private static JsonNode get(String address) throws Exception {
        HttpRequest request = HttpRequest.newBuilder(URI.create(address)).build();
        HttpResponse<String> answer = HTTP.send(request, HttpResponse.BodyHandlers.ofString());
        if (answer.statusCode() != 200) {
            throw new IllegalStateException(address + " answered " + answer.statusCode());
        }
        return new ObjectMapper().readTree(answer.body());
    }
}
