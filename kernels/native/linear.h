// Products of many rows with a list of matrices that have the rows in common, shared out over the team.

#pragma once

#include "matrix.h"
#include "team.h"

constexpr int PARTS = 3;  // at most: queries, keys and values

struct Job {
    const Matrix* w;
    Input in;
    float* y;
    int ldy;
    bool add;
};

static inline bool wants_codes(const Matrix& w) { return w.kind == INT8_BY_INT8; }

// Floats that `prepare` needs for m rows.
static size_t prepared(const Matrix& w, int m) {
    if (wants_codes(w)) return (size_t)m * ((w.k + 3) / 4) + m;
    return w.zeros ? (size_t)m * (w.k / w.group) : 0;
}

// Floats that `multiply` needs for m rows.
static size_t scratch_of(const Matrix* parts, int count, int m) {
    size_t found = 0;
    for (int i = 0; i < count; i++) {
        found += prepared(parts[i], m);
        if (parts[i].next) found += (size_t)m * parts[i].n + prepared(*parts[i].next, m);
    }
    return found;
}

// int8 plus 128, symmetric, rounded half to even as torch rounds; what fills the last word counts as 0.
static void to_codes(const float* x, int k, float fixed, uint8_t* codes, float* scale) {
    float inverse;
    if (fixed > 0) {
        *scale = fixed;
        inverse = 1.0f / fixed;
    } else {
        vec most = (vec){};
        int i = 0;
        for (; i + W <= k; i += W) {
            const vec v = load(x + i);
            most = vmax(most, vmax(v, -v));
        }
        float largest = 0;
        for (int lane = 0; lane < W; lane++) largest = most[lane] > largest ? most[lane] : largest;
        for (; i < k; i++) largest = fabsf(x[i]) > largest ? fabsf(x[i]) : largest;
        *scale = largest / 127.0f;
        inverse = largest > 0 ? 127.0f / largest : 0.0f;
    }
    int i = 0;
#if defined(__AVX512F__)
    for (; i + W <= k; i += W) {
        __m512 v = _mm512_mul_ps(_mm512_loadu_ps(x + i), _mm512_set1_ps(inverse));
        v = _mm512_max_ps(_mm512_min_ps(v, _mm512_set1_ps(127.0f)), _mm512_set1_ps(-127.0f));
        const __m512i code = _mm512_add_epi32(_mm512_cvtps_epi32(v), _mm512_set1_epi32(128));
        _mm_storeu_si128((__m128i*)(codes + i), _mm512_cvtepi32_epi8(code));
    }
#endif
    for (; i < k; i++) {
        float v = x[i] * inverse;
        v = v > 127.0f ? 127.0f : v < -127.0f ? -127.0f : v;
        codes[i] = (uint8_t)((int)rintf(v) + 128);
    }
    for (; i % 4; i++) codes[i] = 128;
}

static void sum_groups(const float* x, int k, int group, float* sums) {
    for (int g = 0; g < k / group; g++, x += group) {
        vec s = (vec){};
        int i = 0;
        for (; i + W <= group; i += W) s += load(x + i);
        float whole = sum(s);
        for (; i < group; i++) whole += x[i];
        sums[g] = whole;
    }
}

// What the matrices need of their rows beyond the numbers themselves, into `scratch`; returns where it ends.
static float* prepare(Job* jobs, int count, int m, float* scratch) {
    bool any = false, own[PARTS];
    for (int i = 0; i < count; i++) {
        const Matrix& w = *jobs[i].w;
        Input& in = jobs[i].in;
        own[i] = wants_codes(w) || w.zeros;
        if (!own[i]) continue;
        any = true;
        for (int e = 0; e < i; e++) {
            const Matrix& o = *jobs[e].w;
            const bool same = o.k == w.k && o.group == w.group && jobs[e].in.x == in.x && o.input_scale == w.input_scale;
            if (!same || wants_codes(o) != wants_codes(w) || !!o.zeros != !!w.zeros) continue;
            in = jobs[e].in;
            own[i] = false;
        }
        if (!own[i]) continue;
        if (wants_codes(w)) {
            in.codes = (const uint8_t*)scratch;
            in.scales = scratch + (size_t)m * ((w.k + 3) / 4);
        } else {
            in.sums = scratch;
        }
        scratch += prepared(w, m);
    }
    if (any)
        Team::get().share(m, [&](int r) {
            for (int i = 0; i < count; i++) {
                if (!own[i]) continue;
                const Matrix& w = *jobs[i].w;
                const Input in = jobs[i].in.at(r, w);
                if (wants_codes(w)) to_codes(in.x, w.k, w.input_scale, (uint8_t*)in.codes, (float*)in.scales);
                else sum_groups(in.x, w.k, w.group, (float*)in.sums);
            }
        });
    return scratch;
}

// All jobs' panels in one line, cut into one piece for each thread. Many rows are cut as well: a task is then one panel
// by one piece of the rows.
static void run_jobs(const Job* jobs, int count, int m) {
    const int pieces = (m + PIECE - 1) / PIECE;
    int all = 0;
    for (int i = 0; i < count; i++) all += (jobs[i].w->n + NR - 1) / NR * pieces;
    Team::get().split(all, [&](int begin, int end) {
        for (int i = 0; i < count && end > 0; i++) {
            const Job& job = jobs[i];
            const Matrix& w = *job.w;
            const int own = (w.n + NR - 1) / NR * pieces;
            const int from = begin < 0 ? 0 : begin, to = end < own ? end : own;
            if (pieces == 1 && from < to)
                BY_FORMAT(w.kind, panels<F>(w, from, to, m, job.in, job.y, job.ldy, job.add));
            for (int t = from; pieces > 1 && t < to; t++) {
                const int p = t / pieces, r = t % pieces * PIECE, rows = m - r < PIECE ? m - r : PIECE;
                float* y = job.y + (size_t)r * job.ldy;
                BY_FORMAT(w.kind, panels<F>(w, p, p + 1, rows, job.in.at(r, w), y, job.ldy, job.add));
            }
            begin -= own;
            end -= own;
        }
    });
}

// y[m, ldy] = x W^T + bias, each part's columns behind the last one's. To be called by all threads of the team.
static void multiply(const Matrix* parts, int count, int m, const float* x, int ldx, float* y, int ldy, bool add,
                     float* scratch) {
    Job first[PARTS], last[PARTS];
    int pairs = 0;
    for (int i = 0; i < count; i++) {
        const Matrix* w = parts + i;
        Input in{x, ldx, nullptr, nullptr, nullptr};
        if (w->next) {
            first[pairs++] = Job{w, in, scratch, w->n, false};
            in.x = scratch;
            in.ld = w->n;
            scratch += (size_t)m * w->n;
            w = w->next;
        }
        last[i] = Job{w, in, y, ldy, add};
        y += w->n;
    }
    if (pairs) {
        scratch = prepare(first, pairs, m, scratch);
        run_jobs(first, pairs, m);
    }
    prepare(last, count, m, scratch);
    run_jobs(last, count, m);
}
