/* Builds an engine of an ONNX graph with TensorRT for RTX 1.2, which asks for no GPU.

   build_engine.exe MODEL.onnx LEAST USUAL LARGEST

   Shapes are as ONNX Runtime's provider takes them: input_ids:1x65,attention_mask:1x65.

   Prints all of TensorRT's messages; the exit status is 0 if there is an engine. The libraries are
   Windows' and made for C++: their objects are tables of functions, called here by their places in
   them. Places are those of TensorRT 10; which of them 1.2 has elsewhere, it tells itself when one
   is called with what it can't be: errors bear the function's name. */

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <windows.h>

enum { BUILDER_CONFIG = 6, BUILDER_NETWORK = 7, BUILDER_PROFILE = 8, BUILDER_BUILD = 13 };
enum { CONFIG_ADD_PROFILE = 22, CONFIG_COUNT_PROFILES = 23 };
enum { CONFIG_COUNT_TARGETS = 54, CONFIG_TARGET = 56 };
enum { PARSER_PARSE = 0, PROFILE_SET = 1, PLAN_SIZE = 2 };

typedef struct {
    int32_t count;
    int64_t sizes[8];
} Shape;

typedef void *(*Function)();

static Function function(void *object, int place) { return ((Function **)object)[0][place]; }

/* What is behind a class of the interface, and does its work. */
static void *behind(void *object) { return ((void **)object)[1]; }

static void print_message(void *logger, int32_t severity, const char *message) {
    static const char *names[] = {"INTERNAL ERROR", "ERROR", "WARNING", "INFO", "VERBOSE"};
    printf("%s: %s\n", names[severity], message);
}

static void destroy(void *object) {}

static void *logger_functions[] = {print_message, destroy};
static void *logger[] = {logger_functions};

static void *need(void *found, const char *what) {
    if (found != NULL) return found;
    fprintf(stderr, "no %s\n", what);
    exit(1);
}

static void *symbol(HMODULE library, const char *name) {
    return need((void *)GetProcAddress(library, name), name);
}

static char *read_whole(const char *path, size_t *size) {
    FILE *file = need(fopen(path, "rb"), path);
    fseek(file, 0, SEEK_END);
    *size = ftell(file);
    rewind(file);
    char *content = need(malloc(*size), "memory");
    need(fread(content, 1, *size, file) == *size ? content : NULL, "content of the model");
    return content;
}

static Shape read_shape(char *text) {
    Shape shape = {0};
    do {
        shape.sizes[shape.count++] = strtoll(text, &text, 10);
    } while (*text++ == 'x');
    return shape;
}

int main(int count, char **arguments) {
    need(count == 5 ? arguments : NULL, "graph and three shapes");
    HMODULE library = need(LoadLibraryA("tensorrt_rtx_1_2.dll"), "tensorrt_rtx_1_2.dll");
    HMODULE parsers =
        need(LoadLibraryA("tensorrt_onnxparser_rtx_1_2.dll"), "tensorrt_onnxparser_rtx_1_2.dll");
    int32_t version = ((int32_t(*)(void))symbol(library, "getInferLibVersion"))();
    int32_t parser_version = ((int32_t(*)(void))symbol(parsers, "getNvOnnxParserVersion"))();

    Function create = (Function)symbol(library, "createInferBuilder_INTERNAL");
    void *builder = behind(need(create(logger, version), "builder"));
    void *config = need(function(builder, BUILDER_CONFIG)(builder), "configuration");
    uint32_t strongly_typed = 1 << 1;
    void *network = need(function(builder, BUILDER_NETWORK)(builder, strongly_typed), "network");

    Function create_parser = (Function)symbol(parsers, "createNvOnnxParser_INTERNAL");
    void *parser = need(create_parser(network, logger, parser_version), "parser");
    size_t size;
    char *model = read_whole(arguments[1], &size);
    uint8_t parsed = (uint8_t)(uintptr_t)function(parser, PARSER_PARSE)(parser, model, size,
                                                                        arguments[1]);
    need(parsed ? parser : NULL, "graph that the parser takes");

    void *profile = need(function(builder, BUILDER_PROFILE)(builder), "profile");
    for (int32_t which = 0; which < 3; which++) {
        for (char *name = strtok(arguments[2 + which], ":"); name; name = strtok(NULL, ":")) {
            Shape shape = read_shape(need(strtok(NULL, ","), name));
            uint8_t taken = (uint8_t)(uintptr_t)function(behind(profile), PROFILE_SET)(
                behind(profile), name, which, &shape);
            need(taken ? profile : NULL, name);
        }
    }
    /* Unasked it builds for four generations. Ampere's A100 is what it has next to Hopper. */
    function(behind(config), CONFIG_COUNT_TARGETS)(behind(config), 1);
    uint8_t known = (uint8_t)(uintptr_t)function(behind(config), CONFIG_TARGET)(behind(config),
                                                                                80, 0);
    need(known ? config : NULL, "compute capability 8.0");

    function(behind(config), CONFIG_ADD_PROFILE)(behind(config), profile);
    int32_t profiles = (int32_t)(uintptr_t)function(behind(config), CONFIG_COUNT_PROFILES)(
        behind(config));
    need(profiles == 1 ? profile : NULL, "profile in the configuration");

    void *plan = need(function(builder, BUILDER_BUILD)(builder, network, config), "engine");
    size_t bytes = (size_t)(uintptr_t)function(behind(plan), PLAN_SIZE)(behind(plan));
    printf("built with TensorRT for RTX %d, %zu bytes\n", version, bytes);
    fflush(stdout);
    _exit(0); /* its destructors look for a GPU */
}
