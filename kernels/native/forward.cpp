// Forward pass of the Llama family over a paged KV cache, for CPUs. GCC/Clang vector extensions, and an intrinsic where
// they have no word for an instruction, so one source serves AVX-512, AVX2 and NEON. Each matrix has a format of its own,
// see formats.h; activations and sums are fp32, but for integer dot products.
//
// Every token of a batch is one row: its position says how far it attends, its row of the block table says where the
// keys and values of its sequence lie. Decoding, prefill, chunks of a prefill and verification of drafts are thus the
// same call. Keys and values of all rows are written before any row attends, layer by layer.

#include "attention.h"
#include "linear.h"

// ---- small operations ------------------------------------------------------------------------------------------------

static inline void rms_row(const float* x, const float* w, float eps, int n, float* y) {
    vec squares = (vec){};
    int i = 0;
    for (; i + W <= n; i += W) squares += load(x + i) * load(x + i);
    float s = sum(squares);
    for (; i < n; i++) s += x[i] * x[i];
    const float scale = 1.0f / sqrtf(s / n + eps);
    for (i = 0; i + W <= n; i += W) *(vec*)(y + i) = load(x + i) * scale * load(w + i);
    for (; i < n; i++) y[i] = x[i] * scale * w[i];
}

static void rms_norm(int m, const float* x, const float* w, float eps, int n, float* y) {
    Team::get().share(m, [=](int r) { rms_row(x + (size_t)r * n, w, eps, n, y + (size_t)r * n); });
}

// x[:, :n] = silu(x[:, :n]) * x[:, n:]
static void swiglu(int m, float* x, int n) {
    Team::get().share(m, [=](int r) {
        float* gate = x + (size_t)r * 2 * n;
        const float* up = gate + n;
        int i = 0;
        for (; i + W <= n; i += W) {
            vec g = load(gate + i);
            *(vec*)(gate + i) = g / (1.0f + vexp(-g)) * load(up + i);
        }
        for (; i < n; i++) gate[i] = gate[i] / (1.0f + expf(-gate[i])) * up[i];
    });
}

// The rotation of Su et al. 2021 in transformers' order: the first half of a head is paired with its second half.
static inline void rotate(float* x, const float* cos, const float* sin, int d) {
    const int h = d / 2;
    for (int i = 0; i < h; i++) {
        const float a = x[i], b = x[i + h];
        x[i] = a * cos[i] - b * sin[i];
        x[i + h] = b * cos[i + h] + a * sin[i + h];
    }
}

// ---- the model -------------------------------------------------------------------------------------------------------

struct Layer {
    const float *norm_in, *norm_mlp;                 // [hidden]
    const Matrix *qkv, *o, *gate_up, *down;          // qkv and gate_up: parts with one input, their columns side by side
    const float *q_norm, *k_norm;                    // [dim] or null
    Cache cache;                                     // the layer's KV blocks
    int32_t qkv_parts, gate_up_parts;
    int32_t query, kv, mlp;                          // heads and width, which pruning may leave different in each layer
    int32_t window, rotary;                          // positions seen at most, 0: all; whether positions rotate
};

struct Model {
    int32_t layers, hidden, vocab, dim, table, cache;  // table, cache: the types of `embedding` and of the KV cache
    float eps, scale;
    const void* embedding;                           // [vocab, hidden], or null where tokens are looked up in a matrix
    const Matrix *lookup, *head;                     // the head may be null
    const float *norm, *cos, *sin;                   // [hidden]; [positions, dim]
    const Layer* layer;
};

struct Rows {
    int32_t m, width;                                // rows; width of the block tables
    const int32_t *positions, *table_row, *tables;   // [m], [m], [sequences, width]
};

static size_t max_of(size_t a, size_t b) { return a > b ? a : b; }

// Where the intermediate results of m rows lie in the working memory.
struct Work {
    size_t normed, mid, scratch;  // floats

    Work(const Model& md, size_t m) : normed(m * md.hidden), mid(0), scratch(0) {
        for (int i = 0; i < md.layers; i++) {
            const Layer& l = md.layer[i];
            normed = max_of(normed, m * l.query * md.dim);
            mid = max_of(mid, m * max_of((size_t)(l.query + 2 * l.kv) * md.dim, (size_t)2 * l.mlp));
            scratch = max_of(scratch, max_of(scratch_of(l.qkv, l.qkv_parts, m), scratch_of(l.o, 1, m)));
            scratch = max_of(scratch, max_of(scratch_of(l.gate_up, l.gate_up_parts, m), scratch_of(l.down, 1, m)));
        }
        if (md.head) scratch = max_of(scratch, scratch_of(md.head, 1, m));
    }
    size_t floats() const { return normed + mid + scratch; }
};

template <typename C>
static void layer_rows(const Model& md, const Layer& l, const Rows& b, float* x, float* work, float* scores,
                       size_t per_thread, bool only_kv) {
    const int qd = l.query * md.dim, kd = l.kv * md.dim, n = qd + 2 * kd;
    const Work size(md, b.m);
    float *normed = work, *mid = normed + size.normed, *scratch = mid + size.mid;
    rms_norm(b.m, x, l.norm_in, md.eps, md.hidden, normed);
    multiply(l.qkv, l.qkv_parts, b.m, normed, md.hidden, mid, n, false, scratch);
    Team::get().share(b.m, [&, qd, kd, n, mid](int r) {
        float* row = mid + (size_t)r * n;
        const int at = b.positions[r];
        const float *cos = md.cos + (size_t)at * md.dim, *sin = md.sin + (size_t)at * md.dim;
        for (int h = 0; h < l.query + l.kv; h++) {
            float* head = row + h * md.dim;
            const float* norm = h < l.query ? l.q_norm : l.k_norm;
            if (norm) rms_row(head, norm, md.eps, md.dim, head);
            if (l.rotary) rotate(head, cos, sin, md.dim);
        }
        const int64_t block = b.tables[(size_t)b.table_row[r] * b.width + at / BLOCK];
        store_kv<C>(l.cache, l.kv, md.dim, row + qd, row + qd + kd, block, at % BLOCK);
    });
    if (only_kv) return;
    const Heads a{l.query, l.kv, md.dim, md.scale, 0.0f, l.window, nullptr};
    attend<C>(b.m, mid, n, l.cache, a, b.tables, b.width, b.table_row, b.positions, scores, per_thread, normed);
    multiply(l.o, 1, b.m, normed, qd, x, md.hidden, true, scratch);
    rms_norm(b.m, x, l.norm_mlp, md.eps, md.hidden, normed);
    multiply(l.gate_up, l.gate_up_parts, b.m, normed, md.hidden, mid, 2 * l.mlp, false, scratch);
    swiglu(b.m, mid, l.mlp);
    multiply(l.down, 1, b.m, mid, 2 * l.mlp, x, md.hidden, true, scratch);
}

template <typename C>
static void run_layers(const Model& md, int from, int to, const Rows& b, float* x, float* work, float* scores,
                       size_t per_thread, bool only_kv) {
    Team::get().run([&] {
        for (int l = from; l < to; l++) layer_rows<C>(md, md.layer[l], b, x, work, scores, per_thread, only_kv);
    });
}

// The first of the highest values; none equals NaN.
static int highest(const float* values, int n) {
    vec tops = splat(-INFINITY);
    int i = 0;
    for (; i + W <= n; i += W) tops = vmax(load(values + i), tops);
    float most = -INFINITY;
    for (; i < n; i++) most = values[i] > most ? values[i] : most;
    for (int lane = 0; lane < W; lane++) most = tops[lane] > most ? tops[lane] : most;
    for (i = 0; i < n; i++)
        if (values[i] == most) return i;
    return 0;
}

template <typename T>
static void run_embed(const Model& md, int m, const int32_t* tokens, float* x) {
    const T* table = (const T*)md.embedding;
    for (int r = 0; r < m; r++)
        for (int i = 0; i < md.hidden; i++) x[(size_t)r * md.hidden + i] = widen(table[(size_t)tokens[r] * md.hidden + i]);
}

#define BY_TYPE(code, CALL)                          \
    switch (code) {                                  \
        case FP32: { typedef float T; CALL; break; }    \
        case BF16: { typedef bf16 T; CALL; break; }     \
        case FP16: { typedef _Float16 T; CALL; break; } \
    }
#define BY_CACHE(code, CALL)                          \
    switch (code) {                                   \
        case INT8: { typedef code8 T; CALL; break; }      \
        case FP8: { typedef code_e4m3 T; CALL; break; }   \
        default: BY_TYPE(code, CALL)                  \
    }

extern "C" {

int isoquant_panel() { return NR; }
int isoquant_block() { return BLOCK; }
void isoquant_threads(int n) { Team::get().resize(n); }
int isoquant_team() { return Team::get().wanted(); }

// Floats that `isoquant_linear` and `isoquant_layers` need for m rows.
int64_t isoquant_linear_scratch(const Matrix* parts, int count, int m) { return scratch_of(parts, count, m); }
int64_t isoquant_work(const Model* md, int m) { return Work(*md, m).floats(); }

void isoquant_linear(const Matrix* parts, int count, int m, const float* x, int ldx, float* y, int ldy, int add,
                     float* scratch) {
    Team::get().run([&] { multiply(parts, count, m, x, ldx, y, ldy, add, scratch); });
}

void isoquant_embed(const Model* md, int m, const int32_t* tokens, float* x) {
    if (md->lookup) {
        Team::get().run([&] {
            Team::get().share(m, [&](int r) { column_of(*md->lookup, tokens[r], x + (size_t)r * md->hidden); });
        });
    } else {
        BY_TYPE(md->table, run_embed<T>(*md, m, tokens, x));
    }
}

void isoquant_layers(const Model* md, int from, int to, const Rows* b, float* x, float* work, float* scores,
                     int64_t per_thread, int only_kv) {
    BY_CACHE(md->cache, run_layers<T>(*md, from, to, *b, x, work, scores, per_thread, only_kv));
}

// The scores of some rows' states, and the best token of each; `hidden` [n, hidden] receives the normed states.
void isoquant_head(const Model* md, int n, const int32_t* rows, const float* x, float* work, float* hidden, float* logits,
                   int32_t* best) {
    Team::get().run([&] {
        Team::get().share(n, [&](int i) {
            rms_row(x + (size_t)rows[i] * md->hidden, md->norm, md->eps, md->hidden, hidden + (size_t)i * md->hidden);
        });
        if (logits) multiply(md->head, 1, n, hidden, md->hidden, logits, md->vocab, false, work);
        if (best) Team::get().share(n, [&](int i) { best[i] = highest(logits + (size_t)i * md->vocab, md->vocab); });
    });
}

void isoquant_attend(int type, const Heads* a, const Rows* b, const float* q, int ldq, const Cache* c, float* scratch,
                     int64_t per_thread, float* out) {
    Team::get().run([&] {
        BY_CACHE(type, attend<T>(b->m, q, ldq, *c, *a, b->tables, b->width, b->table_row, b->positions, scratch,
                                 per_thread, out));
    });
}

void isoquant_store(int type, int heads, int dim, const Rows* b, const float* k, int ldk, const float* v, int ldv,
                    const Cache* c) {
    for (int r = 0; r < b->m; r++) {
        const int at = b->positions[r];
        const int64_t block = b->tables[(size_t)b->table_row[r] * b->width + at / BLOCK];
        BY_CACHE(type, store_kv<T>(*c, heads, dim, k + (size_t)r * ldk, v + (size_t)r * ldv, block, at % BLOCK));
    }
}

}  // extern "C"
