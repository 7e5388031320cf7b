/* SPDX-License-Identifier: MIT
 * The census: an array of words for near clusters, sorted runs of words for those of very sparse files. */
#include "check/census.h"

#include "base/addr.h"

#include <errno.h>
#include <inttypes.h>
#include <sys/mman.h>

/* The array's budget: this many clusters in any case (64 MiB), and two words a cluster that is really there. */
#define DENSE_LEAST (UINT64_C(1) << 24)
/* The same for runs: 32 MiB, and one run for two clusters. */
#define RUNS_LEAST (UINT64_C(1) << 21)
/* New runs wait until there are so many, then all are sorted in at once. */
#define LOG_MOST ((size_t)1 << 17)
#define OVERLAPS_MOST ((size_t)10000)

const char *q2_census_owner(enum q2_owner owner)
{
	static const char *const words[Q2_OWNER_COUNT] = {
		[Q2_OWNER_NONE] = "nothing",
		[Q2_OWNER_DATA] = "guest data",
		[Q2_OWNER_COMPRESSED] = "compressed data",
		[Q2_OWNER_L2] = "L2 table",
		[Q2_OWNER_SNAPSHOT_L1] = "snapshot L1 table",
		[Q2_OWNER_L1] = "active L1 table",
		[Q2_OWNER_HEADER] = "header",
		[Q2_OWNER_REFTABLE] = "refcount table",
		[Q2_OWNER_REFBLOCK] = "refcount block",
		[Q2_OWNER_SNAPSHOTS] = "snapshot table",
		[Q2_OWNER_BITMAP_DIRECTORY] = "bitmap directory",
		[Q2_OWNER_BITMAP_TABLE] = "bitmap table",
		[Q2_OWNER_BITMAP_DATA] = "bitmap data",
		[Q2_OWNER_CRYPTO] = "encryption header",
	};
	return words[owner];
}

int q2_census_init(struct q2_census *census, uint64_t clusters, uint64_t real, struct qcow2_error *err)
{
	*census = (struct q2_census){.clusters = clusters};
	census->dense_count = q2_min(clusters, q2_max(DENSE_LEAST, 2 * real));
	census->dense_bytes = q2_max(census->dense_count, 1) * sizeof *census->dense;
	census->most_runs = RUNS_LEAST + real / 2;
	/* Pages that nobody touches are never there: an empty disk of any size costs nothing. */
	census->pages = q2_new((census->dense_count >> Q2_PAGE_BITS) + 1, sizeof *census->pages);
	pthread_mutex_init(&census->spreading, NULL);
	census->dense = mmap(NULL, census->dense_bytes, PROT_READ | PROT_WRITE,
			     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (census->dense == MAP_FAILED)
		census->dense = NULL;
	return census->dense && census->pages ? 0 : q2_error_nomem(err);
}

void q2_census_free(struct q2_census *census)
{
	if (census->dense)
		munmap(census->dense, census->dense_bytes);
	if (census->pages)
		pthread_mutex_destroy(&census->spreading);
	free(census->pages);
	q2_vec_free(&census->runs);
	q2_vec_free(&census->log);
	q2_vec_free(&census->overlaps);
	*census = (struct q2_census){0};
}

static void note_overlap(struct q2_census *census, uint64_t cluster, uint64_t count, uint32_t old,
			 uint32_t word)
{
	struct q2_vec *vec = &census->overlaps;
	struct q2_overlap *last = vec->count ? (struct q2_overlap *)vec->items + vec->count - 1 : NULL;
	uint8_t first = (old & Q2_WORD_OWNER) >> Q2_WORD_OWNER_SHIFT;
	uint8_t second = (word & Q2_WORD_OWNER) >> Q2_WORD_OWNER_SHIFT;
	if (last && last->first == first && last->second == second && last->start + last->count == cluster) {
		last->count += count;
		return;
	}
	struct q2_overlap *item = vec->count < OVERLAPS_MOST ? q2_vec_push(vec, sizeof *item) : NULL;
	if (item)
		*item = (struct q2_overlap){cluster, count, first, second};
	else
		census->overlaps_lost += count;
}

/* `old` and what is added to it; *clash: two owners that exclude one another meet here for the first time. */
static inline uint32_t combine(uint32_t old, uint32_t word, bool *clash)
{
	uint32_t a = old & Q2_WORD_OWNER, b = word & Q2_WORD_OWNER;
	*clash = false;
	if (!a)
		return word;
	uint32_t sum = (old & Q2_WORD_COUNT) + (word & Q2_WORD_COUNT);
	uint32_t marks = (old | word) & ~(Q2_WORD_OWNER | Q2_WORD_COUNT);
	if ((a != b || a >= (uint32_t)Q2_OWNER_L1 << Q2_WORD_OWNER_SHIFT) && !(old & Q2_WORD_OVERLAP)) {
		*clash = true;
		marks |= Q2_WORD_OVERLAP;
	}
	return marks | a | (sum < Q2_WORD_COUNT ? sum : Q2_WORD_COUNT);
}

/* ---- pages ------------------------------------------------------------------------------------- */

/* The first cluster behind the page of `cluster`. */
static uint64_t page_end(const struct q2_census *census, uint64_t cluster)
{
	return q2_min(((cluster >> Q2_PAGE_BITS) + 1) << Q2_PAGE_BITS, census->dense_count);
}

/* From here on each cluster of the page has a word of its own. */
static void spread(struct q2_census *census, uint64_t page)
{
	uint32_t word = atomic_load(&census->pages[page]);
	uint64_t start = page << Q2_PAGE_BITS, end = page_end(census, start);
	if (word == Q2_PAGE_SPREAD)
		return;
	/* What nobody has touched is 0 already. */
	for (uint64_t c = start; word && c < end; c++)
		census->dense[c] = word;
	atomic_store_explicit(&census->pages[page], Q2_PAGE_SPREAD, memory_order_release);
}

/* Adds the word to `count` clusters that all have `*old`. */
static inline void add_word(struct q2_census *census, uint64_t start, uint64_t count, uint32_t *old,
			    uint32_t word)
{
	bool clash;
	uint32_t sum = combine(*old, word, &clash);
	if (clash)
		note_overlap(census, start, count, *old, word);
	*old = sum;
}

static void add_near(struct q2_census *census, uint64_t start, uint64_t end, uint32_t word)
{
	for (uint64_t stop; start < end; start = stop) {
		uint64_t page = start >> Q2_PAGE_BITS, page_stop = page_end(census, start);
		uint32_t all = atomic_load(&census->pages[page]);
		stop = q2_min(end, page_stop);
		if (all != Q2_PAGE_SPREAD && start == page << Q2_PAGE_BITS && stop == page_stop) {
			add_word(census, start, stop - start, &all, word);
			atomic_store(&census->pages[page], all);
			continue;
		}
		spread(census, page);
		for (uint64_t c = start; c < stop; c++)
			add_word(census, c, 1, &census->dense[c], word);
	}
}

uint64_t q2_census_same(const struct q2_census *census, uint64_t from, uint64_t to)
{
	uint32_t word = q2_census_near(census, from);
	while (from < to) {
		uint64_t stop = q2_min(to, page_end(census, from));
		uint32_t all =
			atomic_load_explicit(&census->pages[from >> Q2_PAGE_BITS], memory_order_acquire);
		if (all == Q2_PAGE_SPREAD)
			while (from < stop && census->dense[from] == word)
				from++;
		else if (all == word)
			from = stop;
		if (from < stop)
			break;
	}
	return from;
}

void q2_census_mark(struct q2_census *census, uint64_t cluster, uint32_t word)
{
	pthread_mutex_lock(&census->spreading);
	spread(census, cluster >> Q2_PAGE_BITS);
	pthread_mutex_unlock(&census->spreading);
	census->dense[cluster] = word;
}

/* ---- runs -------------------------------------------------------------------------------------- */

/* Appends a run, lengthening the last one when it fits. */
static int append(struct q2_vec *vec, uint64_t start, uint64_t end, uint32_t word)
{
	struct q2_run_of_words *last = vec->count ? (struct q2_run_of_words *)vec->items + vec->count - 1
						  : NULL;
	if (last && last->word == word && last->start + last->count == start &&
	    end - last->start <= UINT32_MAX) {
		last->count = (uint32_t)(end - last->start);
		return 0;
	}
	struct q2_run_of_words *item = q2_vec_push(vec, sizeof *item);
	if (!item)
		return QCOW2_E_NOMEM;
	*item = (struct q2_run_of_words){start, (uint32_t)(end - start), word};
	return 0;
}

/* The union of two lists, each sorted and disjoint; words meet by `combine`. gives: 0 or NOMEM. */
static int join(struct q2_census *census, const struct q2_vec *left, const struct q2_vec *right,
		struct q2_vec *out)
{
	const struct q2_run_of_words *l = left->items, *r = right->items;
	const struct q2_run_of_words *l_end = l ? l + left->count : l, *r_end = r ? r + right->count : r;
	uint64_t at = 0; /* all before it is done */
	int rc = 0;
	while (!rc && (l < l_end || r < r_end)) {
		uint64_t l_from = l < l_end ? q2_max(l->start, at) : UINT64_MAX;
		uint64_t r_from = r < r_end ? q2_max(r->start, at) : UINT64_MAX;
		uint64_t l_to = l < l_end ? l->start + l->count : UINT64_MAX;
		uint64_t r_to = r < r_end ? r->start + r->count : UINT64_MAX;
		uint64_t from = q2_min(l_from, r_from), to;
		if (l_from < r_from) {
			to = q2_min(l_to, r_from);
			rc = append(out, from, to, l->word);
		} else if (r_from < l_from) {
			to = q2_min(r_to, l_from);
			rc = append(out, from, to, r->word);
		} else {
			bool clash;
			to = q2_min(l_to, r_to);
			uint32_t word = combine(l->word, r->word, &clash);
			if (clash)
				note_overlap(census, from, to - from, l->word, r->word);
			rc = append(out, from, to, word);
		}
		at = to;
		if (l < l_end && l_to == at)
			l++;
		if (r < r_end && r_to == at)
			r++;
	}
	return rc;
}

/* Where a run of the log begins or ends. */
struct boundary {
	uint64_t at;
	uint32_t word;
	int32_t step; /* 1 begins, -1 ends */
};

static int by_place(const void *a, const void *b)
{
	const struct boundary *x = a, *y = b;
	return x->at < y->at ? -1 : x->at > y->at;
}

/* What covers the place of a sweep. */
struct cover {
	uint64_t owners[Q2_OWNER_COUNT], copied, uncopied, count; /* runs, and the sum of their counts */
};

static void step_over(struct cover *cover, const struct boundary *edge)
{
	uint64_t step = (uint64_t)(int64_t)edge->step;
	cover->owners[(edge->word & Q2_WORD_OWNER) >> Q2_WORD_OWNER_SHIFT] += step;
	cover->copied += edge->word & Q2_WORD_COPIED ? step : 0;
	cover->uncopied += edge->word & Q2_WORD_UNCOPIED ? step : 0;
	cover->count += step * (edge->word & Q2_WORD_COUNT);
}

/* The word of clusters under `cover`, 0 for none. *second: an owner too many, or NONE. */
static uint32_t word_of(const struct cover *cover, enum q2_owner *second)
{
	enum q2_owner first = Q2_OWNER_NONE;
	*second = Q2_OWNER_NONE;
	for (int owner = 1; owner < Q2_OWNER_COUNT; owner++) {
		if (!cover->owners[owner])
			continue;
		if (first)
			*second = (enum q2_owner)owner;
		else if (owner >= Q2_OWNER_L1 && cover->owners[owner] > 1)
			*second = (enum q2_owner)owner;
		if (!first)
			first = (enum q2_owner)owner;
	}
	if (!first)
		return 0;
	return q2_census_word(first,
			      (cover->copied ? Q2_WORD_COPIED : 0) |
				      (cover->uncopied ? Q2_WORD_UNCOPIED : 0) |
				      (*second ? Q2_WORD_OVERLAP : 0),
			      cover->count);
}

/* The log as a sorted, disjoint list. gives: 0 or NOMEM. */
static int flatten(struct q2_census *census, const struct q2_vec *log, struct q2_vec *out)
{
	const struct q2_run_of_words *items = log->items;
	size_t edges = log->count * 2;
	q2_auto struct boundary *edge = q2_new(edges, sizeof *edge);
	struct cover cover = {0};
	if (!edge)
		return QCOW2_E_NOMEM;
	for (size_t i = 0; i < log->count; i++) {
		edge[2 * i] = (struct boundary){items[i].start, items[i].word, 1};
		edge[2 * i + 1] = (struct boundary){items[i].start + items[i].count, items[i].word, -1};
	}
	qsort(edge, edges, sizeof *edge, by_place);
	for (size_t i = 0; i < edges;) {
		uint64_t at = edge[i].at;
		while (i < edges && edge[i].at == at)
			step_over(&cover, &edge[i++]);
		enum q2_owner second;
		uint32_t word = word_of(&cover, &second);
		if (!word)
			continue;
		if (second)
			note_overlap(census, at, edge[i].at - at, word, q2_census_word(second, 0, 0));
		if (append(out, at, edge[i].at, word))
			return QCOW2_E_NOMEM;
	}
	return 0;
}

int q2_census_settle(struct q2_census *census, struct qcow2_error *err)
{
	struct q2_vec *log = &census->log;
	if (!log->count)
		return 0;
	struct q2_vec flat = {0}, sum = {0};
	int rc = flatten(census, log, &flat);
	if (!rc)
		rc = join(census, &census->runs, &flat, &sum);
	q2_vec_free(&flat);
	if (rc) {
		q2_vec_free(&sum);
		return q2_error_nomem(err);
	}
	q2_vec_free(&census->runs);
	census->runs = sum;
	log->count = 0;
	if (census->runs.count > census->most_runs)
		return q2_error_set(
			err, QCOW2_E_RANGE, Q2_NO_OFFSET,
			"The file is too sparse and scattered to count its clusters: over %zu runs "
			"of them lie behind the first %" PRIu64,
			census->most_runs, census->dense_count);
	return 0;
}

int q2_census_add(struct q2_census *census, uint64_t start, uint64_t count, uint32_t word,
		  struct qcow2_error *err)
{
	uint64_t end = start + count;
	if (start < census->dense_count) {
		uint64_t near = q2_min(end, census->dense_count);
		add_near(census, start, near, word);
		start = near;
	}
	/* A log entry counts at most 2^32 - 1 clusters; tables are smaller than that, extents may be not. */
	while (start < end) {
		struct q2_run_of_words *item = q2_vec_push(&census->log, sizeof *item);
		if (!item)
			return q2_error_nomem(err);
		*item = (struct q2_run_of_words){start, (uint32_t)q2_min(end - start, UINT32_MAX), word};
		start += item->count;
		if (census->log.count >= LOG_MOST) {
			int rc = q2_census_settle(census, err);
			if (rc)
				return rc;
		}
	}
	return 0;
}

size_t q2_census_find(const struct q2_census *census, uint64_t cluster)
{
	const struct q2_run_of_words *runs = census->runs.items;
	size_t low = 0, high = census->runs.count;
	while (low < high) {
		size_t middle = low + (high - low) / 2;
		if (runs[middle].start + runs[middle].count > cluster)
			high = middle;
		else
			low = middle + 1;
	}
	return low;
}

uint32_t q2_census_get(const struct q2_census *census, uint64_t cluster)
{
	if (cluster < census->dense_count)
		return q2_census_near(census, cluster);
	const struct q2_run_of_words *runs = census->runs.items;
	size_t i = q2_census_find(census, cluster);
	return i < census->runs.count && runs[i].start <= cluster ? runs[i].word : 0;
}
